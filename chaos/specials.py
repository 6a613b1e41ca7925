"""Rounds that need a home of their own: fifty processes on an empty directory, and a copied home."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from faults import CAST, CHANNELS, common
from stage import Stage, StageError

CROWD = 50
BATCH_S = 10.0


def crowd(root: Path, rng: random.Random, counts: Counter[str]) -> list[Stage]:
    """Fifty processes start at once where there is no home yet; everybody hears everybody."""
    role: dict[str, Any] = {"role": "publisher", "channels": CHANNELS[:1]}
    patterns = ("agent-*", CHANNELS[0])
    cast = {f"one{n}": {**role, "subscriptions": {f"s{n}": [patterns[n % 2]]}} for n in range(CROWD)}
    stage = Stage(root, cast, common({}), rng, counts, home=root / "deep" / "home")
    try:
        stage.start(*cast)
        publish(stage, 2)
        stage.settle()
        stage.finish()
    except StageError as error:
        stage.trouble.append(str(error))
    finally:
        stage.close()
    counts["crowd of fifty"] += 1
    return [stage]


def clone(root: Path, rng: random.Random, counts: Counter[str]) -> list[Stage]:
    """``cp -a`` of a home in use; both go on by themselves, under the same names, and nothing crosses."""
    first = Stage(root / "first", CAST, common({"segment_bytes": 4096}), rng, counts)
    stages = [first]
    try:
        first.start(*CAST)
        publish(first, 40)
        first.settle()
        subprocess.run(["cp", "-a", str(first.home), str(root / "copy")], check=True)
        cast = {name: {**role, "suffix": "@copy"} for name, role in CAST.items()}
        copy = Stage(root / "second", cast, common({}), rng, counts, home=root / "copy", site="s2")
        stages.append(copy)
        copy.start(*CAST)
        for _ in range(2):
            for stage in stages:
                publish(stage, 40)
            for stage in stages:
                stage.kill(stage.life("sue"))
                stage.revive()
        for stage in stages:
            stage.settle()
        stage.finish()
    except StageError as error:
        first.trouble.append(str(error))
    finally:
        for stage in stages:
            stage.close()
    counts["home copied"] += 1
    return stages


def publish(stage: Stage, count: int) -> None:
    """A batch from every publisher of the stage, to its end."""
    lives = stage.of("publisher")
    for life in lives:
        life.said.clear()
        life.do(do="batch", count=count, pace_s=0.0, tasks=1)
    stage.wait(lambda: all(life.heard("batch") or not life.alive for life in lives), BATCH_S, "a batch")
