"""What several verbs take on their line to make a message of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click

from lemegeton.codec import decode_json
from lemegeton.errors import InvalidMessage
from lemegeton.message import MessagePriority

Verb = TypeVar("Verb", bound=Callable[..., Any])


def message(verb: Verb) -> Verb:
    """The arguments and options with which a message begins on every line."""
    for part in (
        click.option("--to", metavar="NAME", help="Whom the message is for."),
        click.option("--type", metavar="TYPE", default="custom", show_default=True, help="Type of the message."),
        click.option("--text", is_flag=True, help="Take the payload as text instead of JSON."),
        click.argument("payload"),
        click.argument("channel"),
    ):
        verb = part(verb)
    return verb


def header(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str] | None:
    """The headers that options of the form KEY=VALUE stand for; None if there are none."""
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} is not of the form KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs) or None


def priority(_: click.Context, __: click.Parameter, value: str) -> MessagePriority:
    """A priority by name or number."""
    with suppress(KeyError, ValueError):
        return MessagePriority(int(value)) if value.isdecimal() else MessagePriority[value.upper()]
    raise click.BadParameter(f"{value!r} is not one of low, normal, high, critical, or 0 to 3")


def value(payload: str | bytes, text: bool) -> Any:
    """The payload an argument or a line stands for."""
    if text:
        return payload.decode() if isinstance(payload, bytes) else payload
    try:
        return decode_json(payload)
    except InvalidMessage as error:
        raise InvalidMessage(f"{error}; quote it as JSON, or give --text") from None
