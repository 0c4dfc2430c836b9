"""Names, priorities, and a task as an operator receives it."""

import json
import pickle
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import (
    VALID_PRIORITIES,
    Artifact,
    InvalidPriorityError,
    InvalidTaskError,
    OperatorError,
    Priority,
    TaskDeadlineExceededError,
    TaskRequest,
    protocol,
    queue_name,
    task_name,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FULL: dict[str, Any] = {
    "meta": {"persistent-output": True, "trace": 7},
    "artifacts": [
        {"uri": "file:///a", "slot": "video", "meta": {"fps": 25}, "etag": "x"},
        {"uri": "file:///b", "slot": "audio"},
    ],
    "options": {"clip_duration": 10, "nested": {"a": [1, None]}},
    "deadline": 1_700_000_000.5,
    "cancel_key": "job",
    "_tracing": {"traceparent": "00-1-2-01"},
    "added_later": [1],
}


def test_names() -> None:
    """Task and queue are named as operators in production name them."""
    assert task_name("clip", "v1") == "sandai_operator.clip.v1.process_task"
    assert queue_name("very_low", "clip", "v1") == "very_low.clip.v1"
    assert queue_name(Priority.HIGH, "clip", "v1") == "high.clip.v1"


def test_priorities() -> None:
    """There are four, highest first; each is its own name."""
    assert VALID_PRIORITIES == ("high", "normal", "low", "very_low")
    assert [f"{Priority.parse(name)}" for name in VALID_PRIORITIES] == [*VALID_PRIORITIES]
    assert pickle.loads(pickle.dumps(Priority.LOW)) is Priority.LOW


@pytest.mark.parametrize("value", ["", "HIGH", "urgent", None, 0, 1.5, b"high", ["high"], {}])
def test_unknown_priority(value: Any) -> None:
    """Whatever is no priority is told, with what would be."""
    with pytest.raises(InvalidPriorityError) as caught:
        queue_name(value, "clip", "v1")
    assert caught.value.priority == value
    assert caught.value.valid_priorities == VALID_PRIORITIES


def test_a_full_task() -> None:
    """Every kwarg of the contract has its place, and what is unknown is kept."""
    request = TaskRequest.from_kwargs(FULL, task_id="t-1")
    assert request.task_id == "t-1"
    assert request.artifacts == [
        Artifact("file:///a", "video", {"fps": 25}, {"etag": "x"}),
        Artifact("file:///b", "audio"),
    ]
    assert request.options == FULL["options"]
    assert request.meta == FULL["meta"]
    assert request.deadline == 1_700_000_000.5
    assert request.cancel_key == "job"
    assert request.tracing == {"traceparent": "00-1-2-01"}
    assert request.extra == {"added_later": [1]}
    assert request.persistent_output
    assert not request.is_description
    assert [artifact.uri for artifact in request.in_slot("audio")] == ["file:///b"]


def test_a_full_task_goes_out_as_it_came() -> None:
    """What was structured unstructures to the same kwargs, unknown keys in their places."""
    assert TaskRequest.from_kwargs(FULL).to_kwargs() == FULL


def test_the_given_kwargs_are_not_changed() -> None:
    """Structuring takes nothing out of the caller's mapping, which may be read-only."""
    before = json.dumps(FULL)
    assert TaskRequest.from_kwargs(MappingProxyType(FULL)).to_kwargs() == FULL
    assert json.dumps(FULL) == before


@pytest.mark.parametrize(
    "kwargs",
    [{}, dict.fromkeys(["meta", "artifacts", "options", "deadline", "cancel_key", "_tracing"])],
    ids=["missing", "null"],
)
def test_defaults(kwargs: dict[str, Any]) -> None:
    """What is missing or null has its default, and what is always present goes out."""
    request = TaskRequest.from_kwargs(kwargs)
    assert request == TaskRequest()
    assert not request.persistent_output
    assert request.to_kwargs() == {"meta": {}, "artifacts": [], "options": {}}


def test_defaults_of_an_artifact() -> None:
    """An empty artifact has empty strings; ``meta`` goes out only when there is some."""
    request = TaskRequest.from_kwargs({"artifacts": [{}, {"slot": "s", "uri": None}]})
    assert request.artifacts == [Artifact(), Artifact(slot="s")]
    assert request.to_kwargs()["artifacts"] == [{"uri": "", "slot": ""}, {"uri": "", "slot": "s"}]


def test_a_description_task() -> None:
    """The client's question is recognised."""
    assert TaskRequest.from_kwargs(protocol.DESCRIPTION_KWARGS).is_description


@pytest.mark.parametrize(
    ("kwargs", "path", "reason"),
    [
        ([], "kwargs", "an object was expected, not list"),
        (None, "kwargs", "an object was expected, not null"),
        ("x", "kwargs", "an object was expected, not str"),
        ({"meta": []}, "meta", "an object was expected, not list"),
        ({"meta": "x"}, "meta", "an object was expected, not str"),
        ({"options": [1]}, "options", "an object was expected, not list"),
        ({"artifacts": {}}, "artifacts", "a list was expected, not dict"),
        ({"artifacts": "ab"}, "artifacts", "a list was expected, not str"),
        ({"artifacts": b"ab"}, "artifacts", "a list was expected, not bytes"),
        ({"artifacts": 5}, "artifacts", "a list was expected, not int"),
        ({"artifacts": [None]}, "artifacts[0]", "an object was expected, not null"),
        ({"artifacts": [{}, "x"]}, "artifacts[1]", "an object was expected, not str"),
        ({"artifacts": [{}, {"uri": 5}]}, "artifacts[1].uri", "a string was expected, not int"),
        ({"artifacts": [{"slot": b"s"}]}, "artifacts[0].slot", "a string was expected, not bytes"),
        ({"artifacts": [{"meta": 1}]}, "artifacts[0].meta", "an object was expected, not int"),
        ({"artifacts": [{"uri": 1}, {"uri": 2}]}, "artifacts[0].uri", "a string was expected"),
        ({"deadline": "soon"}, "deadline", "a finite number was expected, not str"),
        ({"deadline": True}, "deadline", "a finite number was expected, not bool"),
        ({"deadline": float("nan")}, "deadline", "a finite number was expected"),
        ({"deadline": float("inf")}, "deadline", "a finite number was expected"),
        ({"deadline": 10**400}, "deadline", "too large"),
        ({"deadline": []}, "deadline", "a finite number was expected, not list"),
        ({"cancel_key": 5}, "cancel_key", "a string was expected, not int"),
        ({"task_type": ["desc"]}, "task_type", "a string was expected, not list"),
    ],
    ids=repr,
)
def test_wrong_types(kwargs: Any, path: str, reason: str) -> None:
    """A value of the wrong type is an ``InvalidTaskError`` that names its path."""
    with pytest.raises(InvalidTaskError) as caught:
        TaskRequest.from_kwargs(kwargs)
    assert caught.value.path == path
    assert reason in caught.value.reason


@pytest.mark.parametrize("carrier", ["x", [], 5, {"traceparent": 5, 6: "x"}])
def test_a_wrong_carrier_does_not_fail_the_task(carrier: Any) -> None:
    """Tracing that cannot be read is tracing that is off."""
    assert TaskRequest.from_kwargs({"_tracing": carrier}).tracing == {}


@given(st.dictionaries(st.sampled_from([*FULL, "task_type", "x"]), JSON) | JSON)
def test_any_json_is_a_task_or_a_typed_error(kwargs: Any) -> None:
    """Structuring JSON of any shape raises nothing but ``InvalidTaskError``."""
    fault, request = "nothing", TaskRequest()
    try:
        request = TaskRequest.from_kwargs(kwargs)
    except InvalidTaskError as error:
        fault = error.path
    assert fault
    assert request.extra.keys().isdisjoint(FULL.keys() - {"added_later"})


@given(
    st.lists(
        st.fixed_dictionaries(
            {"uri": st.text(), "slot": st.text()},
            optional={
                "meta": st.dictionaries(st.text(), st.text(), min_size=1),
                "other": st.integers(-(2**63), 2**64 - 1),
            },
        )
    ),
    st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.booleans()),
    st.none() | st.floats(0, 1e12),
)
def test_what_a_client_builds_an_operator_reads(
    artifacts: list[dict[str, Any]], options: dict[str, Any], deadline: float | None
) -> None:
    """Built kwargs, sent as JSON, structure and unstructure to the same again."""
    built = protocol.build_kwargs(artifacts, options, deadline=deadline, cancel_key="k")
    received = json.loads(json.dumps(built))
    assert TaskRequest.from_kwargs(received).to_kwargs() == built


def test_a_field_wins_over_an_unknown_key_of_its_name() -> None:
    """An ``extra`` that repeats a field's name does not replace the field."""
    request = TaskRequest([Artifact("a", "s", extra={"uri": "b", "x": 1})])
    assert request.to_kwargs()["artifacts"] == [{"uri": "a", "slot": "s", "x": 1}]


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (TaskRequest(options={"a": [object()]}), "options.a[0]"),
        (TaskRequest([Artifact(), Artifact(meta={"x": {1}, "y": b""})]), "artifacts[1].meta.y"),
        (TaskRequest(extra={"later": {"a": float("nan")}}), "later.a"),
        (TaskRequest(deadline=float("inf")), "deadline"),
    ],
    ids=["options", "artifact", "extra", "deadline"],
)
def test_unstructuring_names_the_path(request_: TaskRequest, path: str) -> None:
    """A value that cannot travel is named from the task's top."""
    with pytest.raises(InvalidTaskError) as caught:
        request_.to_kwargs()
    assert caught.value.path == path


def test_unstructuring_turns_paths() -> None:
    """What an author naturally puts into an artifact is plain when it goes out."""
    request = TaskRequest([Artifact(meta={"work": Path("/tmp")})])
    assert request.to_kwargs()["artifacts"][0]["meta"] == {"work": "/tmp"}


def test_no_deadline_never_passes() -> None:
    """A task without a deadline is never late."""
    request = TaskRequest()
    request.raise_if_expired(1e18)
    assert not request.expired(1e18)


@pytest.mark.parametrize(("now", "expired"), [(9.999, False), (10.0, True), (11.5, True)])
def test_a_deadline_passes(now: float, expired: bool) -> None:
    """The deadline's own second is too late; the error has both times and the task's id."""
    request = TaskRequest(deadline=10.0, task_id="t-1")
    assert request.expired(now) is expired
    if not expired:
        request.raise_if_expired(now)
        return
    with pytest.raises(TaskDeadlineExceededError) as caught:
        request.raise_if_expired(now)
    found = caught.value
    assert (found.task_id, found.deadline, found.current_time) == ("t-1", 10.0, now)


def test_deadlines_are_of_the_wall_clock() -> None:
    """Without a time given, now is Unix time."""
    past, future = (TaskRequest(deadline=time.time() + delta) for delta in (-5, 60))
    assert past.expired()
    assert not future.expired()
    future.raise_if_expired()
    with pytest.raises(OperatorError):
        past.raise_if_expired()


def test_probe_is_told_from_work() -> None:
    """A probe is a task without artifacts and with the probe's options alone."""
    assert TaskRequest.from_kwargs({"artifacts": [], "options": {"test": True}}).is_probe
    others: list[dict[str, Any]] = [
        {"options": {"test": True, "more": 1}},
        {"options": {"test": True}, "artifacts": [{"uri": "file:///x", "slot": "y"}]},
        {"options": {}},
        {"task_type": "desc"},
    ]
    for kwargs in others:
        assert not TaskRequest.from_kwargs(kwargs).is_probe


def test_remaining_time() -> None:
    """What remains is counted to the deadline, past it too, and is infinite without one."""
    request = TaskRequest(deadline=100.0)
    assert request.remaining(now=90.0) == 10.0
    assert request.remaining(now=101.0) == -1.0
    assert TaskRequest().remaining() == float("inf")
    assert TaskRequest(deadline=time.time() + 60).remaining() == pytest.approx(60, abs=5)


@pytest.mark.parametrize("value", ["no", 0, [], {}])
def test_persistent_output_is_a_boolean(value: object) -> None:
    """Anything else, which might be meant as either, is refused by its path."""
    with pytest.raises(InvalidTaskError) as caught:
        TaskRequest.from_kwargs({"meta": {"persistent-output": value}})
    assert caught.value.path == "meta.persistent-output"
    assert not TaskRequest.from_kwargs({"meta": {"persistent-output": None}}).persistent_output
