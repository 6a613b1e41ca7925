"""The bench says which peer is missing instead of inventing a number."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest


def test_a_peer_whose_package_or_server_is_not_here_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    peers = import_module("peers")
    assert peers.Peer("a", "no_such_package", "w", "r").lacks() == "the package no_such_package"
    assert peers.Peer("a", "", "w", "r", "no-such-server").lacks() == "no-such-server"
    assert peers.Peer("a", "json", "w", "r").lacks() == ""
    monkeypatch.setattr(peers, "PEERS", [peers.Peer("a", "no_such_package", "w", "r")])
    missing = ["a (the package no_such_package is not here)"]
    assert peers.compared(Path("/nowhere"), rounds=0, count=1, ours_count=1, paced_s=0.1) == ([], missing)
