"""Answers: always plain for JSON and msgpack alike, or a typed error."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import (
    Artifact,
    BatchTaskResult,
    ConfigurationError,
    HealthCheckResult,
    InvalidResultFormatError,
    InvalidTaskError,
    OperatorDescription,
    OperatorError,
    Priority,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskResult,
    error_reply,
    protocol,
)


def assert_plain(reply: Any) -> None:
    """Check that json and msgpack take *reply*, and that JSON gives the same back."""
    assert json.loads(json.dumps(reply, allow_nan=False)) == reply
    assert_msgpackable(reply, 0)


def assert_msgpackable(value: Any, depth: int) -> None:
    """Check by msgpack's rules: exact types, integers of 64 bits, UTF-8, 511 levels."""
    assert depth < 500
    assert type(value) in {type(None), bool, int, float, str, list, dict}
    if type(value) is int:
        assert -(2**63) <= value < 2**64
    if type(value) is str:
        value.encode()
    if type(value) is list:
        for item in value:
            assert_msgpackable(item, depth + 1)
    if type(value) is dict:
        for key, item in value.items():
            assert type(key) is str
            assert_msgpackable(key, depth + 1)
            assert_msgpackable(item, depth + 1)


class Colour(Enum):
    """An enum of an operator's own."""

    RED = "red"
    NUMBER = 7


class Name(str):
    """A string of an operator's own."""


@attrs.frozen
class Point:
    """A value of an operator's own, nested and hashable."""

    x: int
    inner: "frozenset[Point]" = frozenset()


#: What an operator's author may answer with, and what goes out.
TURNED: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (2**64 - 1, 2**64 - 1),
    (-(2**63), -(2**63)),
    (1.5, 1.5),
    ("ü\0🎬", "ü\0🎬"),
    (Name("n"), "n"),
    ((1, 2), [1, 2]),
    ({3}, [3]),
    ({}.keys(), []),
    (Colour.RED, "red"),
    (Colour.NUMBER, 7),
    (Priority.LOW, "low"),
    ({Colour.RED: 1, Name("k"): 2}, {"red": 1, "k": 2}),
    (Path("/tmp/a"), "/tmp/a"),
    (UUID(int=0), "00000000-0000-0000-0000-000000000000"),
    (Decimal("1.10"), "1.10"),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
    (date(2026, 1, 2), "2026-01-02"),
    (Artifact("a", "s", {"p": Path("x")}), {"uri": "a", "slot": "s", "meta": {"p": "x"}}),
    (Point(1, frozenset({Point(2)})), {"x": 1, "inner": [{"x": 2, "inner": []}]}),
]
#: What cannot go out.
REFUSED: list[Any] = [
    object(),
    b"bytes",
    bytearray(b"x"),
    float("nan"),
    float("inf"),
    -float("inf"),
    2**64,
    -(2**63) - 1,
    1j,
    iter([]),
    Point,
    "half \ud800 a pair",
    Path("undecodable \udcff"),
    {1: "x"},
    {None: "x"},
    {"\ud800": "x"},
    {Colour.NUMBER: 1},
]


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    """Return 0 inside *depth* containers."""
    value: Any = 0
    for _ in range(depth):
        value = wrap(value)
    return value


def cycles() -> list[Any]:
    """Return values that contain themselves."""
    listed: list[Any] = []
    listed.append(listed)
    mapped: dict[str, Any] = {}
    mapped["a"] = [mapped]
    artifact = Artifact()
    artifact.meta["self"] = artifact
    return [listed, mapped, artifact]


@pytest.mark.parametrize(("value", "plain"), TURNED, ids=repr)
def test_values_are_turned(value: Any, plain: Any) -> None:
    """What an author naturally answers with goes out as JSON has it, of exact types."""
    reply = TaskResult([], {"value": [value]}).to_reply()
    assert reply == {"status": "success", "artifacts": [], "results": {"value": [plain]}}
    assert_plain(reply)
    assert_plain(OperatorDescription("doc", {"default": value}, value).to_reply())


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_values_are_refused(value: Any) -> None:
    """What JSON or msgpack cannot carry is an error that names its path."""
    with pytest.raises(InvalidTaskError) as caught:
        TaskResult([], {"a": {"b": [0, value]}}).to_reply()
    assert caught.value.path == "results.a.b[1]"
    str(caught.value).encode("utf-8", "backslashreplace")
    with pytest.raises(InvalidTaskError) as caught:
        OperatorDescription("doc", None, {"default": value}).to_reply()
    assert caught.value.path == "results_schema.default"


@pytest.mark.parametrize("wrap", [lambda it: [it], lambda it: {"a": it}], ids=["list", "dict"])
@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
def test_deep_nesting_is_a_typed_error(depth: int, wrap: Callable[[Any], Any]) -> None:
    """What msgpack could not pack for its depth is refused, not a ``RecursionError``."""
    value = nested(depth, wrap)
    for answer in (
        TaskResult([], {"deep": value}),
        TaskResult([{"meta": value}]),
        OperatorDescription(options_schema=value),
    ):
        with pytest.raises(InvalidTaskError, match="nested"):
            answer.to_reply()


def test_reasonable_nesting_passes() -> None:
    """Two hundred levels go through, envelope and all."""
    assert_plain(TaskResult([], {"deep": nested(200, lambda it: [it])}).to_reply())


@pytest.mark.parametrize("number", range(3))
def test_cycles_are_a_typed_error(number: int) -> None:
    """A value that contains itself is refused."""
    with pytest.raises(InvalidTaskError, match="contains itself") as caught:
        TaskResult([], {"cycle": cycles()[number]}).to_reply()
    assert caught.value.path == "results"


def test_artifacts_of_either_kind() -> None:
    """Artifacts may be objects of ours or mappings, in a list or a tuple."""
    reply = TaskResult((Artifact("a", "s"), {"uri": Path("b"), "slot": "s", "n": 1})).to_reply()  # type: ignore[arg-type]  # a tuple does
    assert reply["artifacts"] == [
        {"uri": "a", "slot": "s"},
        {"uri": "b", "slot": "s", "n": 1},
    ]


@pytest.mark.parametrize(
    ("result", "path"),
    [
        (TaskResult("abc"), "artifacts"),  # type: ignore[arg-type]  # the wrong type is the test
        (TaskResult({}), "artifacts"),  # type: ignore[arg-type]  # the wrong type is the test
        (TaskResult(None), "artifacts"),  # type: ignore[arg-type]  # the wrong type is the test
        (TaskResult(["file:///a"]), "artifacts[0]"),
        (TaskResult([{}, None]), "artifacts[1]"),
        (TaskResult([], [1]), "results"),  # type: ignore[arg-type]  # the wrong type is the test
        (TaskResult([], None), "results"),  # type: ignore[arg-type]  # the wrong type is the test
        (TaskResult([Artifact(meta={"x": object()})]), "artifacts[0].meta.x"),
    ],
    ids=repr,
)
def test_answers_of_the_wrong_shape(result: TaskResult, path: str) -> None:
    """An answer that no client could read is refused where it is made."""
    with pytest.raises(InvalidTaskError) as caught:
        result.to_reply()
    assert caught.value.path == path


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.dates()
    | st.uuids()
    | st.decimals()
    | st.sampled_from([*Colour, *Priority, Point(1), Artifact("a", "s")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters()) | st.integers(), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.lists(ANYTHING, max_size=2) | ANYTHING, st.dictionaries(st.text(), ANYTHING) | ANYTHING)
def test_any_answer_is_plain_or_a_typed_error(artifacts: Any, results: Any) -> None:
    """An answer is either refused or readable: the client gets from it what was put in."""
    reply: dict[str, Any] = {}
    fault = "artifacts"
    try:
        reply = TaskResult(artifacts, results).to_reply()
    except InvalidTaskError as error:
        fault = error.path
    if reply:
        assert_plain(reply)
        decoded = protocol.decode_reply("t-1", reply)
        assert decoded.to_legacy_tuple() == (reply["artifacts"], reply["results"])
    assert fault.startswith(("artifacts", "results"))


def test_description() -> None:
    """A description goes out beside the status and comes back as it was."""
    said = OperatorDescription("Clips.", {"type": "object"}, {"type": "object", "required": ["a"]})
    reply = said.to_reply()
    assert reply == {"status": "success", **said.to_dict()}
    assert protocol.decode_description("t-1", reply) == said


class Wordless(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        """Raise."""
        raise RuntimeError


class Fieldless(TaskCancelledError):
    """A subclass that forgot its base's fields."""

    def __init__(self) -> None:
        """Set nothing."""


class OwnError(OperatorError):
    """An operator's own error, without fields."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("bad fps"), "ValueError", "bad fps"),
        (ValueError(), "ValueError", "ValueError"),
        (KeyError("fps"), "KeyError", "'fps'"),
        (OwnError("odd"), "OwnError", "odd"),
        (SystemExit(3), "SystemExit", "3"),
        (Wordless(), "Wordless", "<Wordless>"),
        (Fieldless(), "Fieldless", None),
        (ValueError("half \ud800"), "ValueError", "half \\ud800"),
        (ValueError(nested(100_000, lambda it: [it])), "ValueError", "<ValueError>"),
        (ValueError(10**5000), "ValueError", "<ValueError>"),
    ],
    ids=lambda it: type(it).__name__ if isinstance(it, BaseException) else "",
)
def test_foreign_errors(error: BaseException, kind: str, message: str | None) -> None:
    """Any exception becomes an envelope of its class and message; making it never raises."""
    reply = error_reply(error)
    assert reply["status"] == "error"
    assert reply["error"]["error_type"] == kind
    assert message is None or reply["error"]["error_message"] == message
    assert_plain(reply)
    with pytest.raises(TaskExecutionError) as caught:
        protocol.decode_reply("t-1", reply)
    assert caught.value.error_type == kind


def test_our_errors_tell_their_fields() -> None:
    """The details of one of this package's errors are its fields."""
    details = error_reply(InvalidTaskError("options.fps", "is odd"))["error"]["error_details"]
    assert details == {"path": "options.fps", "reason": "is odd"}


@pytest.mark.parametrize(
    "error",
    [TaskDeadlineExceededError("t-1", 10.0, 12.5), TaskCancelledError("t-1", "job")],
    ids=lambda it: type(it).__name__,
)
def test_typed_errors_come_back(error: OperatorError) -> None:
    """A skipped task's error is the same on the client's side, fields and all."""
    with pytest.raises(type(error)) as caught:
        protocol.decode_reply("t-1", json.loads(json.dumps(error_reply(error))))
    assert caught.value.args == error.args


@pytest.mark.parametrize("value", [*REFUSED, *cycles(), nested(100_000, lambda it: {"a": it})])
def test_details_that_cannot_travel_are_told_as_text(value: Any) -> None:
    """No field of an error keeps its envelope from being made."""
    for error in (
        TaskExecutionError("t-1", "boom", {"value": value}),
        ConfigurationError("setting", value, "is odd"),
        InvalidResultFormatError("t-1", value),
        InvalidResultFormatError("t-1", [value]),
    ):
        assert_plain(error_reply(error))


def test_batch_result() -> None:
    """A result of a batch succeeded when it was submitted and has no error."""
    done = BatchTaskResult(0, "t-1", True, [{"uri": "a"}], {"n": 1})
    failed = BatchTaskResult(1, "t-2", True, [{"uri": "a"}], {"n": 1}, ValueError())
    unsent = BatchTaskResult(2, None, False, error=ValueError())
    assert [it.success for it in (done, failed, unsent)] == [True, False, False]
    assert done.to_legacy_tuple() == ([{"uri": "a"}], {"n": 1})
    assert failed.to_legacy_tuple() == unsent.to_legacy_tuple() == ([], {})


def test_results_are_values() -> None:
    """Results compare by value; those of a client are frozen."""
    assert TaskResult([], {"a": 1}) == TaskResult(results={"a": 1})
    assert TaskResult() == TaskResult([], {})
    for frozen in (BatchTaskResult(0, None, False), HealthCheckResult(True, False, False)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            frozen.error = None  # type: ignore[misc]  # frozen is what is tested
