"""The errors: fields, bases, texts, and what they survive."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from sandai.op import models
from sandai.op.models import (
    ClientClosedError,
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorConnectionError,
    OperatorError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskTimeoutError,
)

PRIORITIES = ("high", "normal", "low", "very_low")

#: The contract's error table: class, fields in order, further base.
TABLE: list[tuple[type[OperatorError], dict[str, Any], type[Exception]]] = [
    (
        TaskTimeoutError,
        {
            "task_id": "t-1",
            "timeout": 1.5,
            "state": "started",
            "queue": "low.x.v1",
            "queue_depth": 3,
            "stored_state": "STARTED",
        },
        TimeoutError,
    ),
    (
        TaskExecutionError,
        {"task_id": "t-1", "error_message": "boom", "error_details": {"a": [1]}, "error_type": "E"},
        OperatorError,
    ),
    (
        TaskDeadlineExceededError,
        {"task_id": "t-1", "deadline": 10.0, "current_time": 12.5},
        OperatorError,
    ),
    (TaskCancelledError, {"task_id": "t-1", "cancel_key": "job"}, OperatorError),
    (InvalidTaskStatusError, {"task_id": "t-1", "status": "odd"}, OperatorError),
    (
        InvalidResultFormatError,
        {"task_id": "t-1", "result": b"\x80", "reason": "it is no json document"},
        OperatorError,
    ),
    (InvalidPriorityError, {"priority": "urgent", "valid_priorities": PRIORITIES}, ValueError),
    (
        ClientPoolTimeoutError,
        {"pool_name": "broker", "timeout": 0.25, "limit": 8, "in_use": 8, "waiting": 3},
        TimeoutError,
    ),
    (
        OperatorConnectionError,
        {
            "operator_name": "clip",
            "operator_version": "v1",
            "reason": "refused",
            "task_id": "t-1",
        },
        ConnectionError,
    ),
    (
        ConfigurationError,
        {"setting": "broker_pool_limit", "value": -1, "reason": "must be positive"},
        ValueError,
    ),
    (InvalidTaskError, {"path": "options.a", "reason": "is odd"}, ValueError),
    (ClientClosedError, {"operator_name": "clip", "operator_version": "v1"}, OperatorError),
]
IDS = [cls.__name__ for cls, _, _ in TABLE]

#: The shortest call of each, by the contract's fields alone, and what the rest is then.
SHORTEST: list[tuple[OperatorError, dict[str, Any]]] = [
    (TaskTimeoutError("t-1", None), {"timeout": None}),
    (TaskExecutionError("t-1", "boom"), {"error_details": {}, "error_type": "UnknownError"}),
    (InvalidResultFormatError("t-1", [1]), {"result": [1], "reason": None}),
    (InvalidPriorityError("urgent"), {"valid_priorities": PRIORITIES}),
    (ClientPoolTimeoutError("broker", 1, 8), {"in_use": None, "waiting": None}),
    (OperatorConnectionError("clip", "v1", "refused"), {"task_id": None}),
]


def fields_of(error: OperatorError) -> dict[str, Any]:
    """Return an error's fields by name."""
    fields = getattr(type(error), "__attrs_attrs__", ())
    return {field.name: getattr(error, field.name) for field in fields}


def pickled(protocol: int) -> Callable[[OperatorError], OperatorError]:
    """Return the round trip through one protocol of pickle."""

    def round_trip(error: OperatorError) -> OperatorError:
        found = pickle.loads(pickle.dumps(error, protocol))
        assert isinstance(found, OperatorError)
        return found

    return round_trip


ROUND_TRIPS = {
    **{f"pickle{n}": pickled(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def test_a_timeout_needs_no_explanation() -> None:
    """The error is made of an id and a timeout alone, as it always was."""
    error = TaskTimeoutError("t-1", 1.5)
    assert (error.task_id, error.timeout, error.state) == ("t-1", 1.5, "unknown")
    assert (error.queue, error.queue_depth, error.stored_state) == (None, None, None)


def test_the_table_is_complete() -> None:
    """Every error that the package exports is in the table above."""
    exported = {name for name in models.__all__ if name.endswith("Error")}
    assert exported == {*IDS, "OperatorError"}


@pytest.mark.parametrize(("cls", "fields", "base"), TABLE, ids=IDS)
def test_fields_and_bases(
    cls: type[OperatorError], fields: dict[str, Any], base: type[Exception]
) -> None:
    """An error takes its fields in order, has them as attributes, and has its bases."""
    error = cls(*fields.values())
    assert fields_of(error) == fields
    assert isinstance(error, OperatorError)
    assert isinstance(error, base)
    assert fields_of(cls(**fields)) == fields


@pytest.mark.parametrize(("cls", "fields", "base"), TABLE, ids=IDS)
@pytest.mark.parametrize("round_trip", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trips(
    cls: type[OperatorError],
    fields: dict[str, Any],
    base: type[Exception],
    round_trip: Callable[[OperatorError], OperatorError],
) -> None:
    """Pickle and copy keep class, fields, args, notes and text."""
    error = cls(*fields.values())
    error.add_note("seen in a test")
    found = round_trip(error)
    assert found is not error
    assert type(found) is cls
    assert isinstance(found, base)
    assert fields_of(found) == fields
    assert found.args == error.args
    assert found.__notes__ == ["seen in a test"]
    assert (str(found), repr(found)) == (str(error), repr(error))


@pytest.mark.parametrize(("error", "rest"), SHORTEST, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("round_trip", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_shortest_calls(
    error: OperatorError,
    rest: dict[str, Any],
    round_trip: Callable[[OperatorError], OperatorError],
) -> None:
    """What may be left out has its default, before and after a round trip."""
    for found in (error, round_trip(error)):
        assert {name: getattr(found, name) for name in rest} == rest
        assert str(found)


@pytest.mark.parametrize(("cls", "fields", "base"), TABLE, ids=IDS)
def test_can_be_raised_hashed_and_chained(
    cls: type[OperatorError], fields: dict[str, Any], base: type[Exception]
) -> None:
    """An error can be raised from a cause and be a member of a set; its identity is its own."""
    error = cls(*fields.values())
    cause = KeyError("cause")
    with pytest.raises(base) as caught:
        raise error from cause
    assert caught.value is error
    assert error.__cause__ is cause
    assert error in {error}
    assert error != cls(*fields.values())


@pytest.mark.parametrize(("cls", "fields", "base"), TABLE, ids=IDS)
def test_an_os_error_of_ours_has_no_errno(
    cls: type[OperatorError], fields: dict[str, Any], base: type[Exception]
) -> None:
    """Fields are never taken for the errno, the message and the file of an ``OSError``."""
    error = cls(*fields.values())
    if isinstance(error, OSError):
        assert (error.errno, error.strerror, error.filename) == (None, None, None)
    assert error.args == tuple(fields.values())


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (TaskTimeoutError("t-1", 1.5), ["t-1", "1.5 s", "attach"]),
        (TaskTimeoutError("t-1", None), ["t-1", "the time allowed", "still be queued or running"]),
        (
            TaskTimeoutError("t-1", 2, "queued", "low.x.v1", 3),
            ["within 2 s: 3 messages wait in queue low.x.v1", "client.inspect()", "attach"],
        ),
        (TaskTimeoutError("t-1", 2, "queued", "low.x.v1", 1), ["1 message waits in queue low.x"]),
        (TaskTimeoutError("t-1", 2, "queued", None, 2), ["2 messages wait in the operator's queu"]),
        (
            TaskTimeoutError("t-1", 2, "picked_up", "low.x.v1", 0),
            ["queue low.x.v1 is empty: a worker has taken it", "it was lost", "attach"],
        ),
        (TaskTimeoutError("t-1", 2, "picked_up", None, 0), ["the operator's queues are empty"]),
        (TaskTimeoutError("t-1", 2, "started", None, 0, "RETRY"), ["in state RETRY", "attach"]),
        (TaskTimeoutError("t-1", 2, "finished", None, 0, "SUCCESS"), ["it is there now", "attach"]),
        (TaskTimeoutError("t-1", 2, "a state of later days"), ["may still be queued or running"]),
        (TaskExecutionError("t-1", "boom"), ["t-1", "boom"]),
        (TaskExecutionError("t-1", "boom", {}, "OddError"), ["t-1", "OddError: boom"]),
        (TaskDeadlineExceededError("t-1", 10, 12.5), ["t-1", "2.500 s"]),
        (TaskCancelledError("t-1", "job"), ["t-1", "'job'"]),
        (TaskCancelledError("t-1"), ["t-1", "revoked"]),
        (InvalidTaskStatusError("t-1", "odd"), ["t-1", "'odd'"]),
        (InvalidResultFormatError("t-1", [1]), ["t-1", "not list"]),
        (InvalidResultFormatError("t-1", b"", "is empty"), ["t-1", "is empty"]),
        (InvalidPriorityError("urgent"), ["'urgent'", "high, normal, low, very_low"]),
        (ClientPoolTimeoutError("broker", 2, 8), ["broker", "2 s", "limit 8"]),
        (ClientPoolTimeoutError("broker", 2, 8, 7, 3), ["7 in use", "3 waiting"]),
        (OperatorConnectionError("clip", "v1", "refused"), ["clip v1", "refused"]),
        (OperatorConnectionError("clip", "v1"), ["clip v1", "no connection"]),
        (OperatorConnectionError("clip", "v1", "x", "t-1"), ["t-1", "unknown"]),
        (ConfigurationError("timeout", "x", "is odd"), ["timeout='x'", "is odd"]),
        (InvalidTaskError("options.a", "is odd"), ["options.a: is odd"]),
        (ClientClosedError("clip", "v1"), ["clip v1", "closed"]),
    ],
    ids=lambda it: type(it).__name__ if isinstance(it, Exception) else "",
)
def test_texts(error: OperatorError, parts: list[str]) -> None:
    """An error's text is one sentence that holds what its fields say."""
    for part in parts:
        assert part in str(error)
    assert "\n" not in str(error)


def test_only_a_local_wait_is_a_timeout() -> None:
    """What an operator reports is never a ``TimeoutError``."""
    timeouts = {cls for cls, _, _ in TABLE if issubclass(cls, TimeoutError)}
    assert timeouts == {TaskTimeoutError, ClientPoolTimeoutError}


def test_an_undecodable_result_is_kept_but_not_shown() -> None:
    """The bytes of a result are an attribute, not a part of text or repr."""
    error = InvalidResultFormatError("t-1", b"canary")
    assert error.result == b"canary"
    assert "canary" not in f"{error} {error!r}"


def test_errors_have_attrs_fields() -> None:
    """Every class of the table is an attrs class, so its fields can be listed."""
    assert all(attrs.has(cls) for cls, _, _ in TABLE)
