"""Whether a Redis throws away what it was given when its memory is full: then it forgets more often than it must."""

from __future__ import annotations

from lemegeton.errors import RedisRefused
from lemegeton.logs.redis_link import Link


async def evicts(link: Link) -> str:
    """What it does when its memory is full, in words; empty if it refuses then, has no limit, or may not be asked.

    Only ``allkeys`` policies matter: nothing that a message needs has a time to live."""
    try:
        answer = await link.call("INFO", "memory")
    except RedisRefused:
        return ""
    told = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
    facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    limit, policy = facts.get("maxmemory", "0"), facts.get("maxmemory_policy", "")
    if limit == "0" or not policy.startswith("allkeys"):
        return ""
    return (f"at {limit} bytes (maxmemory) it throws channels away (maxmemory-policy {policy}); they are brought again from "
            "the files, which costs time: set maxmemory-policy noeviction")
