"""Typed messages: what a handler says that it takes, and what a sender's class becomes on the wire.

Decided once, when a handler is given to `MessageBus.subscribe`: one that takes a `Message`, or says nothing, is called as it
is.  Any other annotation of its first parameter is the type of the payload, which is decoded to it before the call.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import suppress
from types import NoneType
from typing import Any, TypeVar, get_args

import msgspec

from lemegeton.errors import InvalidMessage, Rejected
from lemegeton.message import Message

UNFIT = "payload does not fit"
SCHEMA, VERSION = "schema", "schema-version"
"""The headers that say which class a payload was, and which version of it."""
VERSION_OF = "__schema_version__"
"""The attribute of a class that says its version; 1 without it."""
PLAIN = frozenset((dict, list, tuple, str, int, float, bool, NoneType))
"""Payloads that are JSON values as they are."""
_EMPTY = inspect.Parameter.empty
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_async(handler: Callable[..., Any]) -> bool:
    """True for a coroutine function, and for an object whose call is one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def decoding(handler: Callable[..., Any]) -> Callable[[Message], Any]:
    """The handler as one that takes a message; it is the same one if it does so anyway."""
    arguments = takes(handler)
    if arguments is None:
        return handler
    if is_async(handler):
        async def decoded(message: Message) -> Any:
            return await handler(*arguments(message))

        return decoded
    return lambda message: handler(*arguments(message))


def takes(handler: Callable[..., Any]) -> Callable[[Message], tuple[Any, ...]] | None:
    """What turns a message into the arguments of a handler; None if it takes the message itself.

    The decoded payload comes first, then the message, if there is a second parameter that takes one: annotated with `Message`,
    or with nothing and without a default.  `InvalidMessage` for a type that no payload can be decoded to, and for parameters
    that would get nothing."""
    parameters = _parameters(handler)
    if not parameters or _is_message(parameters[0].annotation):
        return None
    kind = parameters[0].annotation
    where = f"handler {getattr(handler, '__qualname__', handler)!s:.80}"
    decode = _decoder(kind, where)
    with_message = len(parameters) > 1 and _is_second(parameters[1])
    for left in parameters[1 + with_message :]:
        if left.default is _EMPTY:
            raise InvalidMessage(f"{where}: nothing is known to give to its parameter {left.name!r}; it gets the payload and, "
                                 "annotated with Message, the message")

    def arguments(message: Message) -> tuple[Any, ...]:
        try:
            value = decode(message.payload)
        except (ValueError, TypeError) as error:
            raise Rejected(f"{_name(kind)}: {error}", reason=UNFIT) from error
        return (value, message) if with_message else (value,)

    return arguments


def _parameters(handler: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that are given by position."""
    try:
        signature = inspect.signature(handler)
        with suppress(Exception):  # whatever it evaluates: it may be there for type checkers only, or inside of a function
            signature = inspect.signature(handler, eval_str=True)
    except (ValueError, TypeError):
        return []  # what is built in says nothing
    return [each for each in signature.parameters.values() if each.kind in _POSITIONAL]


def _is_second(parameter: inspect.Parameter) -> bool:
    if parameter.annotation is _EMPTY:
        return parameter.default is _EMPTY
    return _is_message(parameter.annotation)


def _is_message(kind: Any) -> bool:
    if isinstance(kind, str):
        return kind.rpartition(".")[2].strip("'\" ") == Message.__name__
    return kind in (_EMPTY, Any, object, Message) or isinstance(kind, TypeVar) or Message in get_args(kind)


def _decoder(kind: Any, where: str) -> Callable[[Any], Any]:
    if isinstance(kind, str):
        raise InvalidMessage(f"{where}: its parameter is annotated with {kind!r:.80}, which cannot be found; define that at "
                             "the top of its module, outside of TYPE_CHECKING")
    try:
        strange = _strange(msgspec.inspect.type_info(kind))
    except (TypeError, NameError) as error:
        raise InvalidMessage(f"{where}: no payload can be decoded to {_name(kind)}: {error}") from None
    if strange:
        raise InvalidMessage(f"{where}: no payload can be decoded to {_name(kind)}: {strange} is none of msgspec.Struct, "
                             "dataclass, TypedDict, pydantic model or a type of JSON")
    return lambda payload: msgspec.convert(payload, kind, str_keys=True, dec_hook=_validated)


def _strange(info: Any) -> str:
    """The name of a class in a type that nothing can be decoded to; empty if there is none."""
    left, seen = [info], set()
    while left:
        each = left.pop()
        if isinstance(each, msgspec.inspect.CustomType) and not _is_model(each.cls):
            return _name(each.cls)
        if isinstance(each, tuple):
            left += each
        elif isinstance(each, msgspec.inspect.Type | msgspec.inspect.Field) and id(each) not in seen:
            seen.add(id(each))
            left += [getattr(each, name) for name in each.__struct_fields__]
    return ""


def _is_model(kind: Any) -> bool:
    """True for a pydantic model, without a need for pydantic to be installed."""
    return hasattr(kind, "model_validate") and hasattr(kind, "model_dump")


def _validated(kind: Any, value: Any) -> Any:
    return kind.model_validate(value)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _dumped(value: Any) -> Any:
    if _is_model(value.__class__):
        return value.model_dump(mode="json")
    raise TypeError(f"no JSON is known for a {value.__class__.__name__}")


def as_published(payload: Any, headers: dict[str, str] | None) -> tuple[Any, dict[str, str] | None]:
    """The JSON value and the headers of a payload that is a msgspec Struct, a dataclass or a pydantic model; any other stays.

    Headers that are given count before those that name its class and version."""
    kind = payload.__class__
    try:
        if isinstance(payload, msgspec.Struct) or (dataclasses.is_dataclass(payload) and not isinstance(payload, type)):
            value = msgspec.to_builtins(payload, str_keys=True, enc_hook=_dumped)
        elif _is_model(kind):
            value = _dumped(payload)
        else:
            return payload, headers
    except (TypeError, ValueError) as error:
        raise InvalidMessage(f"payload of type {kind.__name__}: cannot be written as JSON: {error}") from None
    named = {SCHEMA: kind.__name__, VERSION: str(getattr(kind, VERSION_OF, 1))}
    return value, {**named, **(headers or {})}
