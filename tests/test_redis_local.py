"""The local Redis of a bus: there while the shared one is away, and there again when it is killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from lemegeton import redis_side
from lemegeton.errors import RedisLost
from lemegeton.events import LocalRedisStarted
from lemegeton.testing.servers import RedisServer
from test_redis_side import fragile, quick, send, site, until  # noqa: F401  (fixtures)


async def test_a_local_redis_that_is_killed_while_the_shared_one_is_away_is_begun_again(
    fragile: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setattr(redis_side, "LOCAL_AFTER_S", 0.05)
    monkeypatch.setattr(redis_side, "LOCAL_MEND_S", (0.05, 0.2))
    fragile.kill()
    async with site(tmp_path / "a", fragile, local_redis="auto", mode_probe_interval=0.05, mode_cooldown=0.05) as a:
        await until(lambda: a.bus.mode.value == "degraded")
        local = a.bus.site.redis._local_relaying._link  # type: ignore[attr-defined]
        for started in (2, 3):
            with pytest.raises(RedisLost):
                await local.call("SHUTDOWN", "NOSAVE")
            await until(lambda started=started: len(a.of(LocalRedisStarted)) == started)
            await until(lambda: local.up)
            await send(a, started)
            await until(lambda: a.bus.site.redis._local_relaying.idle)  # type: ignore[attr-defined]
        assert len(await local.call("XRANGE", "message-stream:c", "-", "+")) == 2
