"""The wire, both ways: kwargs out, replies of every shape in."""

import json
import math
import pickle
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import (
    ConfigurationError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorDescription,
    OperatorError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskResult,
)
from sandai.op.models.protocol import (
    DESCRIPTION_KWARGS,
    PROBE_OPTIONS,
    build_kwargs,
    check_task_id,
    check_timeout,
    decode_description,
    decode_reply,
    failure_error,
    probe_verdict,
    raise_reported,
    wait_limit,
)

ARTIFACTS = [{"uri": "file:///a", "slot": "video"}]


def deep(depth: int = 100_000) -> list[Any]:
    """Return lists in lists, deeper than the stack."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class OddMapping(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __init__(self, **items: Any) -> None:
        """Keep the items."""
        self._items = items

    def __getitem__(self, key: str) -> Any:
        """Return an item."""
        return self._items[key]

    def __iter__(self) -> Any:
        """Iterate over the keys."""
        return iter(self._items)

    def __len__(self) -> int:
        """Count the items."""
        return len(self._items)


# Building a task.


def test_the_smallest_task() -> None:
    """Without deadline, cancel key and tracing none of their kwargs is there."""
    assert build_kwargs([], {}) == {
        "meta": {"persistent-output": False},
        "artifacts": [],
        "options": {},
    }


def test_a_full_task() -> None:
    """Each control is the kwarg that the contract names."""
    assert build_kwargs(
        ARTIFACTS,
        {"a": 1},
        deadline=12.5,
        cancel_key="job",
        persistent_output=True,
        tracing={"traceparent": "00-1-2-01"},
    ) == {
        "meta": {"persistent-output": True},
        "artifacts": ARTIFACTS,
        "options": {"a": 1},
        "deadline": 12.5,
        "cancel_key": "job",
        "_tracing": {"traceparent": "00-1-2-01"},
    }


def test_empty_controls_are_not_sent() -> None:
    """An empty cancel key or carrier is none."""
    assert build_kwargs([], {}, cancel_key="", tracing={}) == build_kwargs([], {})


def test_other_mappings_and_tuples_become_plain() -> None:
    """Sequences and mappings of other types go out as lists and dicts, unknown keys kept."""
    artifact = OddMapping(uri="a", slot="s", meta=MappingProxyType({"x": 1}), etag="e")
    built = build_kwargs((artifact,), MappingProxyType({"a": 1}))
    assert built["artifacts"] == [{"uri": "a", "slot": "s", "meta": {"x": 1}, "etag": "e"}]
    assert type(built["artifacts"]) is list
    assert type(built["artifacts"][0]) is type(built["options"]) is dict
    json.dumps(built["options"])


def test_the_contracts_constants() -> None:
    """Description and probe ask as the contract says."""
    assert DESCRIPTION_KWARGS == {"task_type": "desc"}
    assert PROBE_OPTIONS == {"test": True}


@pytest.mark.parametrize(
    ("artifacts", "options", "path", "reason"),
    [
        (None, {}, "input_artifacts", "not null"),
        ("ab", {}, "input_artifacts", "not str"),
        ({}, {}, "input_artifacts", "not dict"),
        (5, {}, "input_artifacts", "not int"),
        (iter([]), {}, "input_artifacts", "a list of objects was expected"),
        ([5], {}, "input_artifacts[0]", "not int"),
        ([{}, None], {}, "input_artifacts[1]", "not null"),
        ([{}, "x"], {}, "input_artifacts[1]", "not str"),
        ([{}, ["x"]], {}, "input_artifacts[1]", "not list"),
        ([{"uri": 5}], {}, "input_artifacts[0].uri", "not int"),
        ([{"uri": None}], {}, "input_artifacts[0].uri", "not null"),
        ([{"slot": b"s"}], {}, "input_artifacts[0].slot", "not bytes"),
        ([{"meta": []}], {}, "input_artifacts[0].meta", "not list"),
        ([{"meta": {1: 2}}], {}, "input_artifacts[0].meta", "the key 1 is int"),
        ([{1: "x"}], {}, "input_artifacts[0]", "the key 1 is int"),
        ([], None, "options", "not null"),
        ([], [], "options", "not list"),
        ([], "{}", "options", "not str"),
        ([], {None: 1}, "options", "the key None is null"),
        ([], {(1,): 1}, "options", "is tuple"),
    ],
    ids=repr,
)
def test_tasks_of_the_wrong_shape(artifacts: Any, options: Any, path: str, reason: str) -> None:
    """Artifacts and options of the wrong shape are told with their path."""
    with pytest.raises(InvalidTaskError) as caught:
        build_kwargs(artifacts, options)
    assert caught.value.path == path
    assert reason in caught.value.reason


def test_a_cancel_key_is_a_string() -> None:
    """Any other is told."""
    with pytest.raises(InvalidTaskError, match="cancel_key: a string was expected, not int"):
        build_kwargs([], {}, cancel_key=5)  # type: ignore[arg-type]  # the wrong type is the test


# Timeouts.


@pytest.mark.parametrize(
    ("value", "checked"),
    [
        (None, None),
        (0, 0),
        (0.0, 0.0),
        (1.5, 1.5),
        (28_800, 28_800),
        (math.inf, None),
        (1e300, None),
        (10**400, None),
        (threading.TIMEOUT_MAX, threading.TIMEOUT_MAX),
    ],
)
def test_timeouts(value: float | None, checked: float | None) -> None:
    """A number of seconds is one; longer than Python can wait is without limit."""
    assert check_timeout(value) == checked


@pytest.mark.parametrize(
    "value", [-1, -1e-9, -math.inf, math.nan, True, "5", [], b"", 1j, -(10**400)]
)
def test_wrong_timeouts(value: Any) -> None:
    """What is no number of at least 0 is told under the setting's name."""
    with pytest.raises(ConfigurationError) as caught:
        check_timeout(value, setting="pool_acquire_timeout")
    assert caught.value.setting == "pool_acquire_timeout"
    assert "seconds" in caught.value.reason
    with pytest.raises(ConfigurationError):
        wait_limit(value, None)


@pytest.mark.parametrize(
    ("timeout", "default", "limit"),
    [
        (None, 60, 60),
        (None, None, None),
        (None, 0, None),
        (None, 0.0, None),
        (5, 60, 5),
        (5, None, 5),
        (90, 60, 90),
        (0, 60, 0),
        (0.0, None, 0),
        (math.inf, 60, None),
    ],
)
def test_wait_limit(timeout: float | None, default: float | None, limit: float | None) -> None:
    """A call's timeout wins, its 0 is one look; the client's None and 0 are no limit."""
    assert wait_limit(timeout, default) == limit


# Successful replies.


@pytest.mark.parametrize(
    ("reply", "artifacts", "results"),
    [
        ({"status": "success"}, [], {}),
        ({"status": "success", "artifacts": None, "results": None}, [], {}),
        ({"status": "success", "artifacts": ARTIFACTS}, ARTIFACTS, {}),
        ({"status": "success", "results": {"a": 1}}, [], {"a": 1}),
        ({"status": "success", "artifacts": (), "more": 1}, [], {}),
        (OddMapping(status="success", results=OddMapping(a=1)), [], {"a": 1}),
        ({"status": "success", "error": {"error_type": "x"}}, [], {}),
    ],
    ids=repr,
)
def test_success(reply: Any, artifacts: list[Any], results: dict[str, Any]) -> None:
    """A success has its artifacts and results, plain; what is missing is empty."""
    found = decode_reply("t-1", reply)
    assert found == TaskResult(artifacts, results)
    assert type(found.artifacts) is list
    assert type(found.results) is dict
    assert probe_verdict("t-1", reply) == (True, None)


@pytest.mark.parametrize("reply", [None, 5, True, "success", b"", [], [{"status": "success"}], 1.5])
def test_replies_that_are_no_mapping(reply: Any) -> None:
    """The error keeps what came."""
    for decode in (decode_reply, decode_description):
        with pytest.raises(InvalidResultFormatError) as caught:
            decode("t-1", reply)
        assert caught.value.task_id == "t-1"
        assert caught.value.result is reply
    ok, error = probe_verdict("t-1", reply)
    assert not ok
    assert error is not None
    assert "a mapping was expected" in error


@pytest.mark.parametrize(
    "reply",
    [
        {"status": "success", "artifacts": {}},
        {"status": "success", "artifacts": "ab"},
        {"status": "success", "artifacts": 5},
        {"status": "success", "results": []},
        {"status": "success", "results": "x"},
        {"status": "success", "results": False},
    ],
    ids=repr,
)
def test_successes_of_the_wrong_shape(reply: Any) -> None:
    """Artifacts that are no list and results that are no object are told."""
    with pytest.raises(InvalidResultFormatError, match=r"its (artifacts|results) are no") as caught:
        decode_reply("t-1", reply)
    assert caught.value.result is reply


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({}, "unknown"),
        ({"artifacts": []}, "unknown"),
        ({"status": None}, "None"),
        ({"status": ""}, ""),
        ({"status": "SUCCESS"}, "SUCCESS"),
        ({"status": True}, "True"),
        ({"status": ["success"]}, "['success']"),
        ({"status": {}}, "{}"),
        ({"status": deep()}, "<list>"),
        ({"status": "\ud800"}, "\\ud800"),
    ],
    ids=["none", "no status", "null", "empty", "case", "bool", "list", "dict", "deep", "half"],
)
def test_unknown_statuses(reply: Any, status: str) -> None:
    """Any other status is told as text."""
    for decode in (decode_reply, decode_description):
        with pytest.raises(InvalidTaskStatusError) as caught:
            decode("t-1", reply)
        assert (caught.value.task_id, caught.value.status) == ("t-1", status)
    assert probe_verdict("t-1", reply)[0] is False


def test_description() -> None:
    """A description has what the reply carries, and None for what it does not."""
    reply = {"status": "success", "doc": "d", "options_schema": {"type": "object"}}
    assert decode_description("t-1", reply) == OperatorDescription("d", {"type": "object"}, None)


# Error replies.


def reported(error: object) -> OperatorError:
    """Return the error that an envelope's ``error`` part is decoded to."""
    with pytest.raises(OperatorError) as caught:
        decode_reply("t-1", {"status": "error", "error": error})
    with pytest.raises(type(caught.value)):
        raise_reported("t-1", error)
    ok, said = probe_verdict("t-1", {"status": "error", "error": error})
    assert (ok, said) == (True, str(caught.value))
    return caught.value


@pytest.mark.parametrize(
    ("error", "message", "details", "kind"),
    [
        # As the contract has it.
        (
            {"error_type": "OddError", "error_message": "boom", "error_details": {"a": 1}},
            "boom",
            {"a": 1},
            "OddError",
        ),
        # Parts missing.
        ({}, "Unknown error", {}, "UnknownError"),
        ({"error_type": "OddError"}, "Unknown error", {}, "OddError"),
        ({"error_message": "boom"}, "boom", {}, "UnknownError"),
        # Parts of the wrong type.
        ({"error_message": None, "error_type": None}, "Unknown error", {}, "UnknownError"),
        ({"error_message": "", "error_type": ""}, "Unknown error", {}, "UnknownError"),
        ({"error_message": 0, "error_type": 5}, "0", {}, "5"),
        ({"error_message": ["a"], "error_type": ["b"]}, "['a']", {}, "['b']"),
        ({"error_message": deep(), "error_type": deep()}, "<list>", {}, "<list>"),
        ({"error_message": "half \ud800"}, "half \\ud800", {}, "UnknownError"),
        ({"error_details": "x"}, "Unknown error", {"raw_error_details": "x"}, "UnknownError"),
        ({"error_details": [1]}, "Unknown error", {"raw_error_details": [1]}, "UnknownError"),
        ({"error_details": 0}, "Unknown error", {"raw_error_details": 0}, "UnknownError"),
        ({"error_details": ""}, "Unknown error", {"raw_error_details": ""}, "UnknownError"),
        ({"error_details": None}, "Unknown error", {}, "UnknownError"),
        # No mapping at all.
        ("boom", "boom", {}, "UnknownError"),
        (["boom"], "['boom']", {}, "UnknownError"),
        (7, "7", {}, "UnknownError"),
        (True, "True", {}, "UnknownError"),
        (None, "Unknown error", {}, "UnknownError"),
        ("", "Unknown error", {}, "UnknownError"),
        ([], "Unknown error", {}, "UnknownError"),
        (0, "Unknown error", {}, "UnknownError"),
        (deep(), "<list>", {}, "UnknownError"),
    ],
    ids=range(24),
)
def test_error_envelopes(error: Any, message: str, details: dict[str, Any], kind: str) -> None:
    """An error envelope of any shape is a ``TaskExecutionError`` with all that it says."""
    found = reported(error)
    assert type(found) is TaskExecutionError
    assert found.task_id == "t-1"
    assert found.error_message == message
    assert found.error_details == details
    assert found.error_type == kind


def test_an_error_without_its_part() -> None:
    """An error reply that has no ``error`` is an unknown error."""
    with pytest.raises(TaskExecutionError, match="Unknown error"):
        decode_reply("t-1", {"status": "error"})


@pytest.mark.parametrize("word", ["timeout", "TimeoutError: timed out", "TaskTimeoutError"])
def test_an_operators_timeout_is_no_timeout_of_ours(word: str) -> None:
    """A message or a type that says "timeout" stays an execution error."""
    for error in ({"error_type": word, "error_message": word}, word):
        found = reported(error)
        assert type(found) is TaskExecutionError
        assert not isinstance(found, TimeoutError)


@pytest.mark.parametrize(
    ("details", "deadline", "current_time"),
    [
        ({"deadline": 10, "current_time": 12.5}, 10.0, 12.5),
        ({"deadline": "10", "current_time": None}, 0.0, 0.0),
        ({"deadline": 10**400, "current_time": -(10**400)}, 0.0, 0.0),
        ({}, 0.0, 0.0),
        (None, 0.0, 0.0),
        ("late", 0.0, 0.0),
        ([1], 0.0, 0.0),
    ],
    ids=range(7),
)
def test_deadline_errors(details: Any, deadline: float, current_time: float) -> None:
    """A skipped task has its times where the operator told them as numbers."""
    found = reported({"error_type": "TaskDeadlineExceededError", "error_details": details})
    assert isinstance(found, TaskDeadlineExceededError)
    assert (found.task_id, found.deadline, found.current_time) == ("t-1", deadline, current_time)


@pytest.mark.parametrize(
    ("details", "cancel_key"),
    [({"cancel_key": "job"}, "job"), ({"cancel_key": 5}, "5"), ({}, ""), (None, ""), ("x", "")],
    ids=range(5),
)
def test_cancel_errors(details: Any, cancel_key: str) -> None:
    """A cancelled task has its key where the operator told it."""
    found = reported({"error_type": "TaskCancelledError", "error_details": details})
    assert isinstance(found, TaskCancelledError)
    assert (found.task_id, found.cancel_key) == ("t-1", cancel_key)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_odd_times_have_a_text(value: float) -> None:
    """Times that are no finite numbers do not break the error's text."""
    found = reported(
        {"error_type": "TaskDeadlineExceededError", "error_details": {"deadline": value}}
    )
    assert "t-1" in str(found)


# Celery tasks that failed.


@pytest.mark.parametrize(
    ("failure", "message", "details"),
    [
        (
            {"exc_type": "OddError", "exc_module": "own", "exc_message": ["a", 1]},
            "a, 1",
            {"exception_type": "OddError", "exception_module": "own"},
        ),
        (
            {"exc_type": "OddError", "exc_message": "boom", "exc_module": None},
            "boom",
            {"exception_type": "OddError"},
        ),
        (
            {"exc_type": "system", "exc_module": "os", "exc_message": ["touch /tmp/x"]},
            "touch /tmp/x",
            {"exception_type": "system", "exception_module": "os"},
        ),
        ({"exc_type": "OddError", "exc_message": []}, "OddError", {"exception_type": "OddError"}),
        ({"exc_type": "OddError", "exc_message": None}, "OddError", {"exception_type": "OddError"}),
        ({"exc_type": "OddError", "exc_message": 0}, "0", {"exception_type": "OddError"}),
        ({"exc_type": ["x"], "exc_message": {}}, "{}", {"exception_type": "['x']"}),
        (
            {"exc_type": deep(), "exc_module": deep(), "exc_message": [deep()]},
            "<list>",
            {"exception_type": "<list>", "exception_module": "<list>"},
        ),
        ({}, "UnknownError", {"exception_type": "UnknownError"}),
        ("boom", "boom", {"exception_type": "UnknownError"}),
        (["boom"], "['boom']", {"exception_type": "UnknownError"}),
        (deep(), "<list>", {"exception_type": "UnknownError"}),
        (None, "Unknown error", {"exception_type": "UnknownError"}),
        ("", "Unknown error", {"exception_type": "UnknownError"}),
    ],
    ids=range(14),
)
def test_failures(failure: Any, message: str, details: dict[str, Any]) -> None:
    """A FAILURE document of any shape is an error that tells the exception's type as text."""
    found = failure_error("t-1", failure)
    assert type(found) is TaskExecutionError
    assert found.task_id == "t-1"
    assert found.error_message == message
    assert found.error_details == details
    assert found.error_type == details["exception_type"]


@pytest.mark.parametrize(("traceback", "kept"), [("Traceback …", True), ("", False), (5, False)])
def test_tracebacks(traceback: object, kept: bool) -> None:
    """The worker's traceback is kept where there is one."""
    details = failure_error("t-1", {"exc_type": "E"}, traceback).error_details
    assert ("traceback" in details) is kept


# Anything at all.

KEYS = [
    *("status", "artifacts", "results", "error", "error_type", "error_message", "error_details"),
    *("deadline", "current_time", "cancel_key", "exc_type", "exc_module", "exc_message", "doc"),
]
WORDS = ["success", "error", "TaskDeadlineExceededError", "TaskCancelledError", "timeout"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([*WORDS, 10**400])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
ENVELOPES = st.fixed_dictionaries(
    {"status": st.sampled_from(WORDS) | JSON},
    optional={
        "artifacts": JSON,
        "results": JSON,
        "error": st.fixed_dictionaries(
            {"error_type": st.sampled_from(WORDS) | JSON},
            optional={
                "error_message": JSON,
                "error_details": st.dictionaries(st.sampled_from(KEYS), JSON) | JSON,
            },
        )
        | JSON,
    },
)


def outcome_of(call: Callable[..., object], *arguments: object) -> object:
    """Return what a call returns, or the typed error that it raises."""
    try:
        return call(*arguments)
    except OperatorError as error:
        return error


@given(JSON | ENVELOPES)
def test_any_reply_is_a_result_or_a_typed_error(reply: Any) -> None:
    """Decoding JSON of any shape gives a ``TaskResult`` or raises an ``OperatorError``."""
    found = outcome_of(decode_reply, "t-1", reply)
    if isinstance(found, OperatorError):
        assert "t-1" in str(found).encode().decode()
        assert repr(found)
    else:
        assert isinstance(found, TaskResult)
        assert type(found.artifacts) is list
        assert type(found.results) is dict


@given(JSON | ENVELOPES)
def test_any_reply_has_a_verdict_and_a_description(reply: Any) -> None:
    """A probe's verdict is never an exception, and a description's only a typed one."""
    ok, said = probe_verdict("t-1", reply)
    assert ok or said
    found = outcome_of(decode_description, "t-1", reply)
    assert isinstance(found, OperatorDescription) if said is None else str(found) == said


@given(JSON, JSON)
def test_any_failure_is_an_error(failure: Any, traceback: Any) -> None:
    """A FAILURE document of any shape is an execution error with a text."""
    found = failure_error("t-1", failure, traceback)
    assert found.error_message
    assert found.error_details["exception_type"] == found.error_type
    assert "t-1" in str(found).encode().decode()


@given(JSON, JSON)
def test_any_task_is_built_or_a_typed_error(artifacts: Any, options: Any) -> None:
    """Building a task from JSON of any shape raises nothing but ``InvalidTaskError``."""
    found = outcome_of(build_kwargs, artifacts, options)
    if isinstance(found, dict):
        assert found["artifacts"] == artifacts
        assert found["options"] == options
    else:
        assert isinstance(found, InvalidTaskError)
        assert found.path.startswith(("input_artifacts", "options"))


def test_an_exception_that_failed_is_told_by_its_class() -> None:
    """A failure out of an accepted pickle is the exception itself."""
    error = failure_error("id", KeyError("boom"))
    assert error.error_type == "KeyError"
    assert error.error_details == {"exception_type": "KeyError", "exception_module": "builtins"}
    assert "boom" in error.error_message


@pytest.mark.parametrize("task_id", ["", 5, None, "\udc80"])
def test_what_is_no_task_id(task_id: object) -> None:
    """A task's id is a text that Redis can be asked for."""
    with pytest.raises(InvalidTaskError) as caught:
        check_task_id(task_id)
    assert caught.value.path == "task_id"
    pickle.dumps(caught.value)
