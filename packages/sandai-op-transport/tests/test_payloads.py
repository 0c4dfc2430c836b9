"""What is sent is what the operator reads, or an InvalidTaskError that names the place."""

import json
import math
from base64 import b64decode
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.serialization import dumps, loads

from sandai.op.models import InvalidTaskError
from sandai.op.transport import (
    MessageFactory,
    TaskBuilder,
    TaskControls,
    _redis_envelope,
    _serializers,
    resolve,
)
from sandai.op.transport._app import broker_app
from sandai.op.transport._redis_envelope import EnvelopeRenderer

SERIALIZERS = ("msgpack", "json")
each_serializer = pytest.mark.parametrize("serializer", SERIALIZERS)
CONFIG = {name: resolve("clipper", "v1", env={}, task_serializer=name) for name in SERIALIZERS}
APPS = {name: broker_app(config.broker_key) for name, config in CONFIG.items()}
FACTORIES = {name: MessageFactory(APPS[name], name) for name in SERIALIZERS}
RENDERERS = {name: EnvelopeRenderer(FACTORIES[name], APPS[name]) for name in SERIALIZERS}


def sent(serializer: str, artifacts: Any, options: Any) -> tuple[Any, Any]:
    """Return artifacts and options as kombu gives them to the operator."""
    builder = TaskBuilder(CONFIG[serializer])
    message = builder.task(FACTORIES[serializer], "reply", artifacts, options, TaskControls())
    envelope = json.loads(RENDERERS[serializer].render(message))
    content_type = envelope["content-type"]
    body = b64decode(envelope["body"])
    _, kwargs, _ = loads(body, content_type, envelope["content-encoding"], accept={content_type})
    return kwargs["artifacts"], kwargs["options"]


def same(given: Any, read: Any) -> bool:
    """Whether the operator reads what was given; neither format has tuples or bytearrays."""
    if isinstance(given, dict):
        return (
            type(read) is dict
            and list(given) == list(read)
            and all(same(given[key], read[key]) for key in given)
        )
    if isinstance(given, list | tuple):
        return (
            type(read) is list
            and len(given) == len(read)
            and all(same(one, other) for one, other in zip(given, read, strict=True))
        )
    if isinstance(given, float) and math.isnan(given):
        return isinstance(read, float) and math.isnan(read)
    if isinstance(given, Decimal) and given.is_nan():
        return repr(given) == repr(read)
    if isinstance(given, bytearray):
        return bool(bytes(given) == read)
    return isinstance(given, type(read)) and bool(given == read)


class Colour(StrEnum):
    """Strings."""

    RED = "red"


class Level(IntEnum):
    """Integers."""

    LOW = 1


class Plain(Enum):
    """Neither."""

    ONE = 1


class Text(str):
    """A string of the caller's own."""


class Listing(dict[str, Any]):
    """An object of the caller's own."""


@attrs.frozen
class Point:
    """An attrs object, which no serializer takes."""

    x: int = 1


Pair = namedtuple("Pair", "a b")


class Broken:
    """It cannot be encoded, and not be compared."""

    def __json__(self) -> Any:
        raise RuntimeError("no JSON")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = object.__hash__


class Unspeakable:
    """It cannot say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class BrokenMapping(Mapping[str, Any]):
    """A mapping that cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise OSError("gone")

    def __iter__(self) -> Iterator[str]:
        yield "a"

    def __len__(self) -> int:
        return 1


class BrokenDict(dict[str, Any]):
    """A dict that cannot be read, as far as it is asked."""

    def items(self) -> Any:
        """Fail."""
        raise OSError("gone")


odd_values = st.sampled_from(
    [
        object(),
        Point(),
        Pair(1, "x"),
        Colour.RED,
        Level.LOW,
        Plain.ONE,
        Text("a"),
        Listing(a=1),
        OrderedDict(a=1),
        defaultdict(list, a=[1]),
        MappingProxyType({"a": 1}),
        UserDict(a=1),
        BrokenMapping(),
        BrokenDict(a=1),
        Broken(),
        SimpleNamespace(a=1),
        len,
        {1, 2},
        b"\xff",
        bytearray(b"x"),
        range(3),
        1 + 2j,
        10**30,
        float("inf"),
        float("nan"),
        "\ud800",
        datetime(2026, 1, 2, 3, 4, 5, 6),
        datetime(2026, 1, 2, tzinfo=UTC),
        datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        date(2026, 1, 2),
        UUID(int=1),
        Decimal("1.10"),
        {"__type__": "uuid", "__value__": {"hex": "0" * 32}},
        {"__type__": "unknown", "__value__": 1},
        {"__type__": "uuid"},
        {1: 2},
        {None: 1},
        {True: 1},
        {1.5: 1},
        {b"a": 1},
        {(1, 2): 3},
        {"1": 1, 1: 2},
        {"\ud800": 1},
    ]
)
huge = st.just(5000).map(lambda digits: 10**digits)  # which has no repr
keys = st.text(max_size=5) | st.sampled_from(["__type__", "__value__", "uri", "slot", "meta"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | odd_values
    | huge,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.integers() | keys, inner, max_size=2)
    ),
    max_leaves=8,
)
artifact_lists = values | st.lists(
    values
    | st.fixed_dictionaries(
        {"uri": st.just("file:///x") | values, "slot": st.just("video") | values},
        optional={"meta": values, "more": values},
    ),
    max_size=3,
)


@given(
    st.sampled_from(SERIALIZERS),
    artifact_lists,
    values | st.dictionaries(keys, values, max_size=4),
)
@example("json", [], {"a": Broken()})
@example("msgpack", [], BrokenMapping())
@example("json", BrokenMapping(), {})
@example("json", [BrokenDict(uri="x")], BrokenDict(a=1))
def test_any_task(serializer: str, artifacts: Any, options: Any) -> None:
    """A task of any shape arrives as it was given, or is an InvalidTaskError with a path."""
    try:
        read = sent(serializer, artifacts, options)
    except InvalidTaskError as error:
        assert_names_a_place(error)
    else:
        assert same(list(artifacts), read[0])
        assert same(dict(options), read[1])


def assert_names_a_place(error: InvalidTaskError) -> None:
    """Check what a caller is told of a task that cannot be sent."""
    assert error.path.startswith(("input_artifacts", "options"))
    assert error.reason
    assert len(error.reason) < 400
    assert str(error).encode()


places = st.lists(st.sampled_from(["key", 0, 1]), max_size=4)


@given(st.sampled_from(SERIALIZERS), places, st.booleans())
def test_the_place_is_named(serializer: str, steps: list[str | int], in_artifact: bool) -> None:
    """The path leads to the very value, wherever it is."""
    bad = object()
    value: Any = bad
    path = ""
    for step in reversed(steps):
        if isinstance(step, str):
            value, path = {"before": 1, step: value, "after": [2]}, f".{step}{path}"
        else:
            value, path = [0] * step + [value, 3], f"[{step}]{path}"
    artifacts: list[Any] = [{"uri": "x", "slot": "y"}]
    options: dict[str, Any] = {"fine": {"a": 1}}
    if in_artifact:
        artifacts.append({"more": value})
    else:
        options["bad"] = value
    place = "input_artifacts[1].more" if in_artifact else "options.bad"
    with pytest.raises(InvalidTaskError) as caught:
        sent(serializer, artifacts, options)
    assert caught.value.path == place + path


@each_serializer
@pytest.mark.parametrize("key", [1, None, True, 1.5, (1, 2)])
def test_keys_that_are_no_strings(serializer: str, key: Any) -> None:
    """Neither serializer brings such a key to the operator as it was given: it is refused."""
    with pytest.raises(InvalidTaskError) as caught:
        sent(serializer, [], {"a": [{"b": {key: 1}}]})
    assert caught.value.path == "options.a[0].b"


def test_markers_of_kombu() -> None:
    """Under JSON an object like kombu's marker is refused; msgpack brings it as it is."""
    marked = {"__type__": "datetime", "__value__": "2026-01-02"}
    with pytest.raises(InvalidTaskError) as caught:
        sent("json", [], {"a": [marked]})
    assert caught.value.path == "options.a[0]"
    assert sent("msgpack", [], {"a": [marked]})[1] == {"a": [marked]}
    more = {**marked, "more": 1}
    assert sent("json", [], {"a": more})[1] == {"a": more}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@each_serializer
def test_what_is_no_number(serializer: str, number: float) -> None:
    """NaN and infinities reach the operator, as Celery's own clients send them."""
    [read] = sent(serializer, [], {"a": [number]})[1]["a"]
    assert repr(read) == repr(number)


def test_numbers_and_texts_that_do_not_fit() -> None:
    """What msgpack cannot hold is refused with its place; JSON holds more."""
    for value in (2**64, -(2**63) - 1, "\ud800"):
        with pytest.raises(InvalidTaskError) as caught:
            sent("msgpack", [], {"a": {"b": [1, value]}})
        assert caught.value.path == "options.a.b[1]"
        assert sent("json", [], {"a": value})[1] == {"a": value}
    assert sent("msgpack", [], {"a": [2**64 - 1, -(2**63)]})[1] == {"a": [2**64 - 1, -(2**63)]}
    with pytest.raises(InvalidTaskError) as caught:
        sent("json", [], {"a": {"b": 10**5000}})
    assert caught.value.path == "options.a.b"


@each_serializer
def test_contained_in_itself(serializer: str) -> None:
    """The path ends where the value begins anew."""
    options: dict[str, Any] = {"fine": 1, "a": {"b": [0]}}
    options["a"]["b"].append(options["a"])
    with pytest.raises(InvalidTaskError) as caught:
        sent(serializer, [], options)
    assert caught.value.path == "options.a.b[1]"


@each_serializer
def test_nested_too_deeply(serializer: str) -> None:
    """The part that is too deep is named, not one beside it; a little less is sent."""
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(InvalidTaskError) as caught:
        sent(serializer, [{"more": [deep]}], {"fine": 1})
    assert caught.value.path.startswith("input_artifacts[0].more[0][0]")
    fits: Any = 1
    for _ in range(400):
        fits = [fits]
    assert sent(serializer, [], {"a": fits})[1] == {"a": fits}


def test_just_too_deep() -> None:
    """Of parts that fit alone, and not in a message, the deepest is named."""

    def send(depth: int) -> None:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        sent("msgpack", [{"more": value}], {"fine": [[1]]})

    def sends(depth: int) -> bool:
        with suppress(InvalidTaskError):
            send(depth)
            return True
        return False

    fits = next(depth for depth in range(480, 1100) if not sends(depth + 1))
    assert fits > 480
    with pytest.raises(InvalidTaskError) as caught:
        send(fits + 1)
    assert caught.value.path.startswith("input_artifacts[0].more[0]")


@each_serializer
def test_last_of_many(serializer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among many thousands the bad one is found by halves, not by trying each."""
    tried = []

    def counting(value: Any, *, serializer: str) -> Any:
        tried.append(1)
        return dumps(value, serializer=serializer)

    monkeypatch.setattr(_serializers, "dumps", counting)
    with pytest.raises(InvalidTaskError) as caught:
        sent(serializer, [], {"a": [*range(30_000), object()]})
    assert caught.value.path == "options.a[30000]"
    assert len(tried) < 40


def test_reason_is_short() -> None:
    """A key of a million characters does not make an error of a million."""
    with pytest.raises(InvalidTaskError) as caught:
        sent("json", [], {"a": {tuple("x" * 1_000_000): 1}})
    assert len(caught.value.reason) < 400


@each_serializer
def test_what_cannot_say_what_it_is(serializer: str) -> None:
    """As a key or a value: it is told by its type."""
    for value in (Unspeakable(), {Unspeakable(): 1}):
        with pytest.raises(InvalidTaskError) as caught:
            sent(serializer, [], {"a": value})
        assert caught.value.path == "options.a"
    unreadable: Any = {Unspeakable(): 1}
    with pytest.raises(InvalidTaskError, match="<Unspeakable>"):
        sent(serializer, [], unreadable)


@each_serializer
@pytest.mark.parametrize("surplus", [-1, 0, 1])
def test_size_limit(serializer: str, surplus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of the limit's size goes out, and one with a byte more does not."""
    builder = TaskBuilder(CONFIG[serializer])
    options = {"a": "b" * 1000}
    message = builder.task(FACTORIES[serializer], "reply", [], options, TaskControls())
    size = len(RENDERERS[serializer].render(message))
    monkeypatch.setattr(_redis_envelope, "MAX_BYTES", size - surplus)
    if surplus > 0:
        with pytest.raises(InvalidTaskError, match=f"is {size} bytes"):
            RENDERERS[serializer].render(message)
    else:
        assert len(RENDERERS[serializer].render(message)) == size
