"""``request``: a message out, its reply in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from lemegeton.bus import MessageBus
from lemegeton.channels import check_channel
from lemegeton.cli.causes import Why
from lemegeton.cli.fields import header, message, priority, value
from lemegeton.cli.output import Options, printable, put_line, run, seconds
from lemegeton.errors import NoReply
from lemegeton.message import Message


@click.command()
@message
@click.option("--priority", metavar="P", default="normal", callback=priority, show_default=True,
              help="low, normal, high or critical, or 0 to 3; the reply has the same.")
@click.option("--header", "headers", metavar="K=V", multiple=True, callback=header, help="A header; may be repeated.")
@click.option("--id", metavar="ID", help="Asked again with the same id, also later, it is handled once and has the same reply.")
@click.option("--timeout", metavar="S", type=float, callback=seconds, default=30.0, show_default=True,
              help="Give up after S seconds; exit 3.")
@click.option("--progress", is_flag=True, help="Print what comes before the reply as well.")
@click.option("--name", metavar="NAME", default="cli-request", show_default=True, help="Name of the requester.")
@click.pass_obj
def request(options: Options, /, channel: str, payload: str, text: bool, name: str, progress: bool, **fields: Any) -> None:
    """Publish PAYLOAD (JSON) to CHANNEL, wait for the reply, and print it.

    A handler that fails, or raises until its attempts are used up, ends this with 1 and what it said.  Ctrl-C tells the
    handler that nobody waits any more.
    """
    check_channel(channel)
    # Not the name of `pub`: whoever waits here would keep every `pub` waiting for the origin.
    bus = MessageBus(name, home=options.home)
    why = Why(bus)
    show = _shower(options)
    try:
        run(_request(bus, channel, value(payload, text), show if progress else None, show, fields))
    except NoReply as error:
        raise NoReply(f"{error}{why}") from None


async def _request(
    bus: MessageBus, channel: str, payload: Any, progress: Callable[[Message], None] | None,
    show: Callable[[Message], None], fields: dict[str, Any]
) -> None:
    async with bus:
        show(await bus.request(channel, payload, progress=progress, **fields))


def _shower(options: Options) -> Callable[[Message], None]:
    """Prints a reply: its wire JSON in one line, or what is in it, for people."""

    def show(message: Message) -> None:
        said = message.payload
        if options.wants_json:
            return put_line(message.raw)
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        return put_line("\n".join(map(printable, text.split("\n"))).encode())

    return show
