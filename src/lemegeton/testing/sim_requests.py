"""Requests of simulated processes: each ends in the reply to itself, or in an error, in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lemegeton.errors import LemegetonError
from lemegeton.message import Message
from lemegeton.requesting import CANCEL_WAIT_S
from lemegeton.testing.sim_plan import Send

if TYPE_CHECKING:
    from lemegeton.testing.sim_process import Life

SLACK_S = 0.5
"""How much longer than its timeout, and than saying so, a request may take: whatever it meets has its turn."""


async def ask(life: Life, send: Send) -> None:
    """Send a request and judge how it ends.  Whether it was stored is not known then."""
    assert life.bus is not None, "it runs"
    payload, loop = life.begin(send), life.world.loop
    began = loop.time()
    try:
        reply = await life.bus.request(send.channel, payload, priority=send.priority, timeout=send.timeout,
                                       id=send.tag if send.given else None)
        life.world.note("request with an id: replied" if send.given else "request: replied")
        if reply.payload != {"re": send.tag}:
            life.world.violate("misreplied", f"{life.gate.name}: {send.tag} was told {reply.payload}")
    finally:
        took_s = loop.time() - began
        if took_s > send.timeout + CANCEL_WAIT_S + SLACK_S and life.resumed_at < began:
            life.world.violate("hung", f"{life.gate.name}: request {send.tag} of {send.timeout} s took {took_s:.3f} s")
    life.record("info", ch=send.channel, id=send.tag)


async def reply(life: Life, message: Message, tag: str) -> None:
    """What every handler says to a request."""
    try:
        await message.progress("so far")
        await message.reply({"re": tag})
    except LemegetonError as error:
        life.world.note(f"reply: {type(error).__name__}")
