"""Replies, failures and payloads of any shape: plain data or a typed error, fit to be shown."""

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import (
    ConfigurationError,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorConnectionError,
    OperatorError,
    TaskCancelledError,
    TaskExecutionError,
    TaskRequest,
    error_reply,
    protocol,
)

NASTY = [
    "\x1b[2J\x1b]0;title\x07",
    "done\n2026-01-01 ERROR forged",
    "\r\x08\x7f\x9b31m",
    "\u202egnp.exe\u2066\u2028\u2029\x85",
    "\ud800",
    "\x00",
]
CONTROLS = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]} | set(
    "\u2028\u2029\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ud800"
)

KNOWN_KEYS = (
    *("status", "artifacts", "results", "error", "error_type", "error_message"),
    *("error_details", "exc_type", "exc_module", "exc_message", "deadline"),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=4)
    | st.sampled_from([*NASTY, 10**400, "success", "error"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.integers() | st.binary(max_size=3), inner)
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(KNOWN_KEYS, inner),
        )
    ),
    max_leaves=10,
)
errors = st.fixed_dictionaries(
    {
        "error_type": values | st.sampled_from(["TaskDeadlineExceededError", "TaskCancelledError"]),
        "error_details": values
        | st.fixed_dictionaries({"deadline": values, "current_time": values, "cancel_key": values}),
    },
    optional={"error_message": values},
)
replies = values | st.fixed_dictionaries(
    {"status": st.sampled_from(["success", "error"]) | values},
    optional={"artifacts": values, "results": values, "error": values | errors},
)


def check(error: OperatorError) -> None:
    """Check that an error can be shown, logged, copied and sent to another process."""
    said = str(error)
    assert len(said) < 2100
    assert not set(said) & CONTROLS
    assert said.encode()
    assert str(copy.copy(error)) == str(pickle.loads(pickle.dumps(error))) == said


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the typed error that it raises."""
    try:
        return call()
    except OperatorError as error:
        check(error)
        return error


@given(replies)
def test_any_reply(reply: Any) -> None:
    """A reply is a result or a typed error, for a call, a description and a probe alike."""
    result = outcome(lambda: protocol.decode_reply("t", reply))
    if not isinstance(result, OperatorError):
        assert type(result.artifacts) is list
        assert type(result.results) is dict
    outcome(lambda: protocol.decode_description("t", reply))
    answered, said = protocol.probe_verdict("t", reply)
    assert answered or said
    assert not set(said or "") & CONTROLS


@given(values, values)
def test_any_failure(failure: Any, traceback: Any) -> None:
    """A failure of any shape is an execution error."""
    check(protocol.failure_error("t", failure, traceback))


@given(values)
def test_any_request(kwargs: Any) -> None:
    """What an operator receives is a request, or an error that it can answer with."""
    request = outcome(lambda: TaskRequest.from_kwargs(kwargs))
    assert isinstance(request, TaskRequest | InvalidTaskError)
    if isinstance(request, TaskRequest):
        outcome(request.to_kwargs)
    else:
        assert error_reply(request)["status"] == "error"


@given(values, values)
def test_any_payload(artifacts: Any, options: Any) -> None:
    """Artifacts and options are taken as they are, or refused with a path."""
    kwargs = outcome(lambda: protocol.build_kwargs(artifacts, options))
    if isinstance(kwargs, InvalidTaskError):
        assert kwargs.path.startswith(("input_artifacts", "options"))
    else:
        assert repr(kwargs["artifacts"]) == repr(list(artifacts))
        assert repr(kwargs["options"]) == repr(options)


class Gone(Mapping[str, Any]):
    """A mapping whose values cannot be had."""

    def __getitem__(self, key: str) -> Any:
        raise OSError("the file is gone")

    def __iter__(self) -> Iterator[str]:
        yield "a"

    def __len__(self) -> int:
        return 1


def test_mapping_that_cannot_be_read() -> None:
    """What a class of the caller's own raises is told with its place."""
    cases: list[tuple[Any, Any, str]] = [
        ([], Gone(), "options"),
        ([{}, Gone()], {}, "input_artifacts[1]"),
        ([{"meta": Gone()}], {}, "input_artifacts[0].meta"),
    ]
    for artifacts, options, path in cases:
        with pytest.raises(InvalidTaskError, match="the file is gone") as caught:
            protocol.build_kwargs(artifacts, options)
        assert caught.value.path == path


@pytest.mark.parametrize("nasty", NASTY)
def test_texts_are_one_printable_line(nasty: str) -> None:
    """Whatever part of an error is nasty: its text is escaped, its field is as it came."""
    made: list[OperatorError] = [
        OperatorError(nasty),
        TaskExecutionError(nasty, nasty, {}, nasty),
        TaskCancelledError(nasty, nasty),
        InvalidTaskStatusError(nasty, nasty),
        InvalidResultFormatError(nasty, nasty, nasty),
        InvalidPriorityError(nasty),
        InvalidTaskError(nasty, nasty),
        OperatorConnectionError(nasty, nasty, nasty, nasty),
        ConfigurationError(nasty, nasty, nasty),
    ]
    for error in made:
        check(error)
    assert made[1].error_message == nasty  # type: ignore[attr-defined]  # it is the second's


def test_escapes_are_pythons() -> None:
    """A newline shows as in Python; letters, emoji and their joiners stay."""
    family = "Zoë\u00a0👨\u200d👩\u200d👧"
    error = TaskExecutionError("t", f"a\nb\x1b[0m {family}")
    assert str(error) == f"task t failed: a\\nb\\x1b[0m {family}"


def test_long_texts_are_cut_in_the_middle() -> None:
    """Of a long text the beginning and the end are shown, and how much is not."""
    error = OperatorConnectionError("clip", "v1", "x" * 1_000_000, "t-1")
    said = str(error)
    assert said.startswith("operator clip v1: xxx")
    assert "[... of 1000" in said
    assert said.endswith("whether task t-1 was queued is unknown (attach to it to find out)")
    check(error)
    assert len(error.reason or "") == 1_000_000
    check(TaskExecutionError("t", "\u2028" * 1_990))  # escaped they are six times as long
    check(TaskExecutionError("t", "\u2028" * 1_000_000))


class Unspeakable:
    """It cannot say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_error_about_what_cannot_say_what_it_is() -> None:
    """Showing an error never fails."""
    assert str(InvalidPriorityError(Unspeakable())) == "<InvalidPriorityError>"
    assert "<Unspeakable>" in protocol.shown(Unspeakable())
    assert protocol.describe_error(KeyError("x" * 1000)).startswith("KeyError: 'xxx")
    assert len(protocol.describe_error(KeyError("x" * 1000))) < 220
