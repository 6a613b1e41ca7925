"""Handlers get what their annotation says; what does not fit is a dead letter at once; newer messages are read."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemegeton import InvalidMessage, Message, MessageBus
from lemegeton.errors import Rejected
from lemegeton.subscription import asynchronous
from lemegeton.testing.memory import MemorySite
from lemegeton.typed import PLAIN, as_published, decoding, takes
from test_deadletters import WAIT_S, dead

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

T = TypeVar("T")


class Item(msgspec.Struct, frozen=True):
    name: str
    count: int = 1


class Order(msgspec.Struct):
    __schema_version__: ClassVar[int] = 2
    id: int
    items: list[Item] = []


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Note(TypedDict):
    text: str


class Plain:
    """Nothing can be decoded to it."""


def message_of(payload: Any, **fields: Any) -> Message:
    return Message(timestamp=1, type="t", sender="me", payload=payload, **fields)


class Taker:
    """An object whose call is the handler."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def __call__(self, order: Order) -> None:
        self.got.append(order)

    async def method(self, note: Note, message: Message) -> None:
        self.got.append((note, message.sender))

    def of(self, first: int, point: Point) -> None:
        self.got.append((first, point))


# ------------------------------------------------------------------------------------------------ the annotation


async def bare(message): ...  # type: ignore[no-untyped-def]
async def plain(message: Message) -> Any: ...
async def quoted(message: "Message") -> Any: ...  # noqa: UP037
async def anything(message: Any) -> Any: ...
async def an_object(message: object) -> Any: ...
async def maybe(message: Message | None) -> Any: ...
async def generic(message: T) -> T: ...  # type: ignore[empty-body]
async def many(*messages: Order) -> Any: ...
async def second(message: Message, order: Order) -> Any: ...
async def strange_result(message: Message) -> Unknown: ...


@pytest.mark.parametrize("handler", [
    bare, plain, quoted, anything, an_object, maybe, generic, many, second, strange_result, [].append, print, lambda _: None,
    asyncio.Queue[Any]().put, dict,
])
def test_a_handler_of_messages_is_called_as_it_is(handler: Callable[..., Any]) -> None:
    assert decoding(handler) is handler


def test_a_name_that_only_type_checkers_have_is_a_message_if_it_says_so() -> None:
    handler: Any = eval("lambda m: None")
    handler.__annotations__ = {"m": "nowhere.Message"}
    assert takes(handler) is None


async def unknown(order: Unknown) -> None: ...
async def of_plain(order: Plain) -> None: ...
async def of_plains(orders: dict[str, list[Plain]]) -> None: ...
async def of_number(order: 5) -> None: ...  # type: ignore[valid-type]
async def of_three(order: Order, message: Message, session: Plain) -> None: ...
async def of_two(order: Order, session: Plain) -> None: ...


@pytest.mark.parametrize(("handler", "said"), [
    (unknown, "handler unknown: its parameter is annotated with 'Unknown', which cannot be found; define that at the"),
    (of_plain, "no payload can be decoded to Plain: Plain is none of msgspec.Struct, dataclass, TypedDict"),
    (of_plains, r"to dict\[str, list\[test_typed.Plain\]\]: Plain is none of"), (of_number, "no payload can be decoded to 5: "),
    (of_two, "handler of_two: nothing is known to give to its parameter 'session'; it gets the payload and"),
    (of_three, "'session'"),
])
def test_a_type_that_no_payload_can_be_is_refused(handler: Callable[..., Any], said: str) -> None:
    with pytest.raises(InvalidMessage, match=said):
        decoding(handler)


async def test_a_subscription_with_such_a_handler_is_not_begun() -> None:
    async with MessageBus("a", site=MemorySite()) as bus:
        with pytest.raises(InvalidMessage, match="Plain"):
            await bus.subscribe("c", of_plain, durable="work")
        await bus.subscribe("c", plain, durable="work")


async def of_items(items: list[Item]) -> list[Item]:
    return items


async def of_either(value: Order | str) -> Order | str:
    return value


async def of_counts(counts: dict[int, str]) -> dict[int, str]:
    return counts


class Tree(msgspec.Struct):
    children: list[Tree] = []


async def of_tree(tree: Tree) -> Tree:
    return tree


@pytest.mark.parametrize(("handler", "payload", "value"), [
    (of_items, [{"name": "a"}], [Item("a")]), (of_either, "x", "x"), (of_either, {"id": 1}, Order(1)),
    (of_counts, {"1": "a"}, {1: "a"}), (of_tree, {"children": [{}]}, Tree([Tree()])),
])
async def test_whatever_msgspec_knows_can_be_asked_for(handler: Callable[..., Any], payload: Any, value: Any) -> None:
    assert await decoding(handler)(message_of(payload)) == value


async def test_methods_objects_and_partials_are_looked_at() -> None:
    taker = Taker()
    await decoding(taker)(message_of({"id": 1, "items": [{"name": "a"}]}))
    await decoding(taker.method)(message_of({"text": "t"}))
    decoding(partial(taker.of, 7))(message_of({"x": 1}))
    assert taker.got == [Order(1, [Item("a")]), ({"text": "t"}, "me"), (7, Point(1.0))]


async def test_a_second_parameter_is_the_message_if_it_can_only_be_that() -> None:
    async def of(order, second=5, *, third=7):  # type: ignore[no-untyped-def]
        return second, third

    of.__annotations__ = {"order": Order}
    message = message_of({"id": 1})
    assert await decoding(of)(message) == (5, 7)
    of.__annotations__ = {"order": Order, "second": Message}
    assert await decoding(of)(message) == (message, 7)
    of.__defaults__, of.__annotations__ = None, {"order": Order}
    assert await decoding(of)(message) == (message, 7)


@given(st.integers(), st.lists(st.builds(Item, st.text(), st.integers(-(2**53), 2**53))))
def test_what_was_published_is_what_is_taken(number: int, items: list[Item]) -> None:
    order = Order(number, items)
    payload, headers = as_published(order, None)
    assert headers == {"schema": "Order", "schema-version": "2"}
    arguments = takes(Taker())
    assert arguments is not None
    assert arguments(message_of(msgspec.json.decode(msgspec.json.encode(payload)))) == (order,)


@pytest.mark.parametrize("payload", [{}, {"id": "1"}, {"id": 1, "items": [{}]}, None, 7, [], "x", {"id": None}])
def test_what_does_not_fit_is_rejected_with_the_reason(payload: Any) -> None:
    arguments = takes(Taker())
    assert arguments is not None
    with pytest.raises(Rejected, match=r"^Order: ") as caught:
        arguments(message_of(payload))
    assert caught.value.reason == "payload does not fit"


# ------------------------------------------------------------------------------------------------ the sender


@pytest.mark.parametrize("payload", [{}, [], (), "x", 1, 1.0, True, None])
def test_json_values_are_looked_at_once(payload: Any) -> None:
    assert payload.__class__ in PLAIN
    assert as_published(payload, None) == (payload, None)


def test_classes_say_what_they_are() -> None:
    assert as_published(Point(1.0), {"k": "v"}) == (
        {"x": 1.0, "y": 0.0}, {"schema": "Point", "schema-version": "1", "k": "v"})
    assert as_published(Point, None) == (Point, None)
    assert as_published(Order(1), {"schema-version": "9"})[1] == {"schema": "Order", "schema-version": "9"}
    with pytest.raises(InvalidMessage, match="payload of type Point: cannot be written as JSON: no JSON is known for a Plain"):
        as_published(Point(Plain()), None)  # type: ignore[arg-type]


async def test_the_bus_refuses_of_a_class_what_it_refuses_of_a_value() -> None:
    async with MessageBus("a", site=MemorySite()) as bus:
        for payload in (Point(float("nan")), Plain(), {"point": Point(1.0)}):
            with pytest.raises(InvalidMessage):
                await bus.publish("c", payload)


# ------------------------------------------------------------------------------------------------ on a bus


@asynccontextmanager
async def a_bus() -> Any:
    async with MessageBus("a", site=MemorySite(retry_attempts=3, retry_delay=60.0)) as bus:
        yield bus


async def take(count: int, got: list[Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(got) < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_what_does_not_fit_is_a_dead_letter_at_once_and_the_others_flow(in_thread: bool) -> None:
    got: list[Any] = []

    def sync_handler(order: Order, message: Message) -> None:
        got.append((order, message.headers.get("schema-version"), message.sender))

    async def handler(order: Order, message: Message) -> None:
        sync_handler(order, message)

    async with a_bus() as bus:
        await bus.subscribe("c", sync_handler if in_thread else handler, durable="work")
        await bus.publish("c", {"id": "no"})
        await bus.publish("c", Order(1), ack="handled", headers={"k": "v"})
        await bus.publish("c", {"id": 2})
        await take(2, got)
        assert got == [(Order(1), "2", "a"), (Order(2), None, "a")]
        (letter,) = await dead(bus, 1)
        assert (letter.reason, letter.attempts, letter.payload) == ("payload does not fit", 1, {"id": "no"})
        assert letter.error == "Rejected: Order: Expected `int`, got `str` - at `$.id`"
        await bus.dead_letters.edit(letter.id, {"id": 3})
        await bus.dead_letters.redrive_all(reason="payload does not fit")
        await take(3, got)
        assert got[2][0] == Order(3)


async def test_an_older_reader_reads_a_newer_message_and_sees_its_version() -> None:
    class OrderAsItWasOnce(msgspec.Struct):
        id: int

    class OrderOfTomorrow(Order):
        __schema_version__: ClassVar[int] = 3
        urgent: bool = True

    got: list[Any] = []

    async def old(order, message) -> None:  # type: ignore[no-untyped-def]
        got.append((order, message.headers))

    old.__annotations__ = {"order": OrderAsItWasOnce, "message": Message}
    async with a_bus() as bus:
        await bus.subscribe("c", old)
        await bus.publish("c", OrderOfTomorrow(1, [Item("a")]))
        await take(1, got)
    assert got == [(OrderAsItWasOnce(1), {"schema": "OrderOfTomorrow", "schema-version": "3"})]


async def test_what_a_typed_handler_raises_itself_is_tried_again() -> None:
    calls: list[Order] = []

    async def handler(order: Order) -> None:
        calls.append(order)
        if len(calls) < 2:
            raise ValueError("not now")

    async with MessageBus("a", site=MemorySite(retry_delay=0.0)) as bus:
        await bus.subscribe("c", handler)
        await bus.publish("c", Order(1))
        await take(2, calls)


def test_a_synchronous_handler_that_returns_an_awaitable_is_awaited() -> None:
    async def later(order: Order) -> str:
        return f"order {order.id}"

    def handler(order: Order) -> Any:
        return later(order)

    async def test() -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            assert await asynchronous(handler, lambda: pool)(message_of({"id": 4})) == "order 4"

    asyncio.run(test())


# ------------------------------------------------------------------------------------------------ pydantic


async def test_pydantic_models_go_both_ways() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        when: int

    class Model(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        __schema_version__: ClassVar[int] = 4
        name: str
        inner: Inner

    async def handler(model) -> Any:  # type: ignore[no-untyped-def]
        return model

    for kind, payload in ((Model, {}), (list[Model], [])):
        handler.__annotations__ = {"model": kind}
        call = decoding(handler)
        good = {"name": "n", "inner": {"when": 1}, "newer": True}
        value = await call(message_of(good if payload == {} else [good]))
        assert value == (Model(name="n", inner=Inner(when=1)) if payload == {} else [Model(name="n", inner=Inner(when=1))])
        with pytest.raises(Rejected):
            await call(message_of({"name": "n"} if payload == {} else [{"name": "n"}]))
    assert as_published(Model(name="n", inner=Inner(when=1)), None) == (
        {"name": "n", "inner": {"when": 1}}, {"schema": "Model", "schema-version": "4"})
