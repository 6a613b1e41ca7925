"""The bench says which peer is missing or has failed instead of inventing a number."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("on_path")


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def test_a_peer_whose_package_or_server_is_not_here_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    peers, peer = import_module("peers"), import_module("peer_list").Peer
    assert peer("a", "no_such_package", "w", "r").lacks() == "the package no_such_package"
    assert peer("a", "", "w", "r", "no-such-server").lacks() == "no-such-server"
    assert peer("a", "json", "w", "r").lacks() == ""
    monkeypatch.setattr(peers, "PEERS", [peer("a", "no_such_package", "w", "r")])
    assert peers.missing() == ["a (the package no_such_package is not here)"]
    turns = peers.PeerBench(Path("/nowhere"), peers.PEERS_QUICK, import_module("stand").Found()).turns()
    assert [turn.name for turn in turns] == ["peers.ours"]


def test_a_peer_that_failed_is_told_and_not_tried_again(tmp_path: Path) -> None:
    peers, peer, result = import_module("peers"), import_module("peer_list").Peer, import_module("stand").Found()
    bench = peers.PeerBench(tmp_path, peers.PEERS_QUICK, result)
    broken = peer("No Such", "", "no_such_publish", "no_such_subscribe", files=True)
    for _ in range(2):
        result.step(peers.turn_name(broken), lambda: bench._peer(broken))
    assert (len(result.failed), result.failed[0].startswith("peers.no-such: file_peers.py")) == (1, True)
