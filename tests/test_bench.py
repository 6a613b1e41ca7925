"""The bench runs, holds its figures against its bars, and says what failed."""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("on_path")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def found(**figures: dict[str, list[float]]) -> Any:
    return import_module("stand").Found(samples=dict(figures))


# ── what fails ──────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_ends_or_says_nothing_fails_its_step_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    stand, result = import_module("stand"), found()
    ends, silent = stand.Role("raw.py", "no such role"), stand.Role("raw.py", "write", path="/dev/null", count=1, line_bytes=99)
    silent.hear()
    try:
        stand.take_turns("part", [
            stand.Turn("part.a", [ends.hear, lambda: result.add("f", "ours", 1.0)], 1),
            stand.Turn("part.b", [lambda: silent.hear(0.01)], 1)], result)
    finally:
        ends.end()
        silent.end()
    assert result.samples == {"f": {"ours": [1.0]}}
    assert ["ended with 1 and said nothing" in result.failed[0], "said nothing for 0 s" in result.failed[1]] == [True, True]
    assert "FAILED part.a: raw.py no such role ended" in capsys.readouterr().out


# ── bars ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("ours", "word"), [(5.0, "goal"), (3.0, "yes"), (1.0, "NO")])
def test_a_bar_that_is_not_reached_does_not_hold(ours: float, word: str) -> None:
    bars, pair = import_module("bars"), import_module("table").Pair
    least = bars.Bar(pair("f: a, msg/s", "ours", "raw"), bars.AT_LEAST, 0.5, 0.8)
    most = bars.Bar(pair("f: b, MB", "ours"), bars.AT_MOST, 5.0, 2.0)
    result = found(**{"f: a, msg/s": {"ours": [ours, 9.0, 0.1], "raw": [5.0]}, "f: b, MB": {"ours": [8.0 - ours]}})
    judged = bars.judge(result, [least, most])
    assert [one.cells()[-1] for one in judged] == [word, {"goal": "yes", "yes": "yes", "NO": "NO"}[word]]
    assert [one.holds for one in judged] == [word != "NO"] * 2


def test_what_was_not_measured_holds_no_bar_and_breaks_none() -> None:
    bars = import_module("bars")
    judged = bars.judge(found())
    assert {one.cells()[3] for one in judged} == {"not measured"}
    assert all(one.holds for one in judged)


def test_every_bar_stands_for_a_figure_of_its_own() -> None:
    bars = import_module("bars").BARS
    assert len({bar.pair for bar in bars}) == len(bars)
    assert all(bar.goal is None or bar.reached(bar.goal, bar.bar) for bar in bars)


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_bench_measures_what_is_asked_for_and_writes_page_and_pictures(tmp_path: Path) -> None:
    only = ["files.one", "files.eight", "fan-out.files", "start"]
    assert import_module("run").main(["--quick", "--no-peers", "--out", str(tmp_path), "--only", *only]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    for text in ("| one publisher, each publish awaited, msg/s |", "CPU of the publisher", "| eight publishers",
                 "| files, CPU of the publisher, µs a delivered message | 5 subscribers", "from lemegeton import MessageBus",
                 "Missing:** all peers, as asked", "![throughput](throughput.svg)"):
        assert text in page
    assert "latency" not in page
    assert (tmp_path / "fan-out.svg").exists()


def test_the_bench_measures_through_a_redis(tmp_path: Path) -> None:
    only = ["redis.latency-500-unix", "redis.history", "fan-out.redis"]
    assert import_module("run").main(["--quick", "--no-peers", "--out", str(tmp_path), "--only", *only]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    for text in ("| unix socket, latency at 500 msg/s, p50, µs |", "messages of history, memory of the server, MB",
                 "| Redis, CPU of server and publisher, µs a delivered message | 5 subscribers"):
        assert text in page


def test_a_failed_step_fails_the_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, start_up = import_module("run"), import_module("start_up")
    monkeypatch.setattr(start_up, "PACKAGE", "import no_such_package")
    arguments = ["--quick", "--no-peers", "--out", str(tmp_path), "--only", "start.import"]
    assert run.main(arguments) == 1
    assert "**Failed:** start.import: import no_such_package: " in (tmp_path / "RESULTS.md").read_text()


def test_a_name_that_nothing_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module("run").main(["--only", "start", "no-such"]) == 2
    assert "begins with no-such; --list" in capsys.readouterr().err


def test_a_picture_says_its_numbers_in_words_and_knows_dark_pages() -> None:
    svg = import_module("svg")
    bars = [svg.Bar("one & two", 12.5, "ours", 1_000.0), svg.Bar("x", 0.5, "peer")]
    drawn = svg.chart("A <title>", "µs", [svg.Group("some", bars)])
    root = Tree.fromstring(drawn)
    assert root.get("role") == "img"
    assert [root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")] == [
        "A <title>", "µs. some: one & two 12.5 / 1,000, x 0.50."]
    assert "prefers-color-scheme:dark" in (root.findtext(f"{SVG}style") or "")
    assert len(drawn) < 4_000


def test_what_a_process_took_is_read_before_it_ends(tmp_path: Path) -> None:
    stand = import_module("stand")
    count, path = 20_000, str(tmp_path / "log")
    reader = stand.Role("raw.py", "read", paths=[path], count=count)
    read, wrote = stand.pair(reader, stand.Role("raw.py", "write", path=path, count=count, line_bytes=100))
    assert read.told["ended"] > wrote.told["begun"]
    assert all(ran.cpu_s > 0.0 and ran.peak_mb > 1.0 for ran in (read, wrote))


def test_there_is_a_p999_only_where_ten_lie_above_it() -> None:
    percentiles = import_module("common").percentiles
    assert percentiles([]) == {}
    assert percentiles(range(1_000, 10_001_000, 1_000)).keys() == {"p50", "p99"}
    many = percentiles(range(0, 20_000_000, 1_000))
    assert many == {"p50": 10_500.0, "p99": 19_810.0, "p99.9": 19_981.0}


def test_what_is_sent_in_batches_is_so_many_whole_ones() -> None:
    run, batch, eight = import_module("run"), import_module("figures").TASKS, import_module("figures").WRITERS
    for sizes in (run.SIZES, run.QUICK_SIZES):
        counts = [sizes.files.messages, sizes.files.synced, sizes.redis.slow, sizes.fan.messages, *sizes.redis.large]
        assert [count % batch for count in counts] == [0] * len(counts)
        assert (sizes.redis.messages % (eight * batch), sizes.files.messages % eight) == (0, 0)
    with pytest.raises(ValueError, match="100 messages are not batches of 64"):
        import_module("redis_raw").whole(100, 64)
