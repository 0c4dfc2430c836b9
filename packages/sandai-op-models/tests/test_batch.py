"""The batch reducer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import (
    BatchTaskResult,
    InvalidResultFormatError,
    InvalidTaskError,
    OperatorConnectionError,
    OperatorError,
    TaskExecutionError,
    TaskResult,
    TaskTimeoutError,
)
from sandai.op.models.batch import BatchReducer


def reducer_of(*ids: str | None) -> BatchReducer:
    """Return a reducer that expects *ids*, numbered from 0."""
    reducer = BatchReducer()
    for index, task_id in enumerate(ids):
        reducer.expect(index, task_id, None)
    return reducer


def test_an_empty_batch() -> None:
    """Nothing expected is nothing waited for and no result."""
    reducer = BatchReducer()
    assert [*reducer] == []
    assert len(reducer) == 0
    reducer.expire(1)
    assert reducer.results() == []


def test_results_stand_in_the_order_of_the_batch() -> None:
    """Outcomes come in any order; results keep the batch's, with the caller's index."""
    reducer = BatchReducer()
    for index, task_id in [(7, "a"), (3, "b"), (5, "c")]:
        reducer.expect(index, task_id, None)
    assert [*reducer] == ["a", "b", "c"]
    failure = TaskExecutionError("c", "boom")
    reducer.accept("c", failure)
    reducer.accept("b", TaskResult([{"uri": "b"}], {"n": 2}))
    assert [*reducer] == ["a"]
    reducer.accept("a", TaskResult())
    assert len(reducer) == 0
    assert reducer.results() == [
        BatchTaskResult(7, "a", True),
        BatchTaskResult(3, "b", True, [{"uri": "b"}], {"n": 2}),
        BatchTaskResult(5, "c", True, error=failure),
    ]


def test_what_was_not_submitted_is_not_waited_for() -> None:
    """A submission's error is its result; an id of unknown fate is told, not waited for."""
    reducer = BatchReducer()
    refused, unsure = ValueError("refused"), OperatorError("unsure")
    reducer.expect(0, None, refused)
    reducer.expect(1, "b", unsure)
    reducer.expect(2, None, None)
    assert [*reducer] == []
    reducer.accept("b", TaskResult())
    first, second, third = reducer.results()
    assert first == BatchTaskResult(0, None, False, error=refused)
    assert second == BatchTaskResult(1, "b", False, error=unsure)
    assert (third.submitted, third.success) == (False, False)
    assert isinstance(third.error, OperatorError)


def test_what_became_of_a_submission() -> None:
    """An id is waited for; an error is the result, with the id that it tells."""
    reducer = BatchReducer()
    refused = InvalidTaskError("tasks[1]", "no")
    unsure = OperatorConnectionError("op", "v1", "it broke off", "c")
    outcomes: list[str | Exception] = ["a", refused, unsure]
    for index, queued in enumerate(outcomes):
        reducer.expect_queued(index, queued)
    assert [*reducer] == ["a"]
    reducer.accept("a", TaskResult())
    assert reducer.results() == [
        BatchTaskResult(0, "a", True),
        BatchTaskResult(1, None, False, error=refused),
        BatchTaskResult(2, "c", False, error=unsure),
    ]


def test_all_errors() -> None:
    """A batch of failures alone has an error in every place."""
    reducer = reducer_of("a", "b")
    errors = {"a": OperatorError("1"), "b": KeyError("2")}
    for task_id, error in errors.items():
        reducer.accept(task_id, error)
    assert [result.error for result in reducer.results()] == [*errors.values()]
    assert [result.to_legacy_tuple() for result in reducer.results()] == [([], {}), ([], {})]


def test_one_id_in_several_places() -> None:
    """The same submission handed in twice is waited for once and fills both places."""
    reducer = reducer_of("a", "b", "a")
    assert [*reducer] == ["a", "b"]
    assert len(reducer) == 2
    reducer.accept("a", TaskResult([], {"n": 1}))
    reducer.accept("b", TaskResult([], {"n": 2}))
    assert [result.results["n"] for result in reducer.results()] == [1, 2, 1]
    assert [result.index for result in reducer.results()] == [0, 1, 2]


def test_unknown_and_repeated_outcomes_are_ignored() -> None:
    """An id never expected, or filled before, changes nothing."""
    reducer = reducer_of("a")
    reducer.accept("z", TaskResult())
    reducer.accept("a", TaskResult([], {"n": 1}))
    reducer.accept("a", OperatorError("late"))
    reducer.expire(1)
    assert reducer.results() == [BatchTaskResult(0, "a", True, results={"n": 1})]


def test_expiry_fills_what_is_open() -> None:
    """What is still open times out with the batch's timeout and the last failure as cause."""
    reducer = reducer_of("a", "b", "c")
    reducer.accept("b", TaskResult())
    cause = ConnectionError("gone")
    reducer.expire(2.5, cause)
    assert [*reducer] == []
    first, second, third = reducer.results()
    assert second.success
    for result in (first, third):
        assert result.submitted
        assert isinstance(result.error, TaskTimeoutError)
        assert (result.error.task_id, result.error.timeout) == (result.task_id, 2.5)
        assert result.error.__cause__ is cause


def test_an_unfinished_batch_has_no_results() -> None:
    """Asking before everything has its outcome is an error, not a hole in the list."""
    reducer = reducer_of("a", "b")
    reducer.accept("a", TaskResult())
    with pytest.raises(OperatorError, match="still waited for"):
        reducer.results()


def test_replies_are_decoded() -> None:
    """A reply fills its place decoded, whether it is read, wrong, or raises."""
    reducer = reducer_of("a", "b", "c")
    fault = InvalidResultFormatError("c", b"")

    def unreadable() -> object:
        raise fault

    reducer.accept_reply("a", lambda: {"status": "success", "results": {"n": 1}})
    reducer.accept_reply("b", lambda: {"status": "error", "error": "boom"})
    reducer.accept_reply("c", unreadable)
    first, second, third = reducer.results()
    assert first.results == {"n": 1}
    assert isinstance(second.error, TaskExecutionError)
    assert third.error is fault


def test_reducers_share_nothing() -> None:
    """Each batch has places of its own."""
    assert [*reducer_of("a")] == ["a"]
    assert [*BatchReducer()] == []


@given(
    st.lists(st.none() | st.sampled_from("abcdef")).flatmap(
        lambda ids: st.tuples(st.just(ids), st.permutations("abcdefg"), st.integers(0, 7))
    )
)
def test_any_order_fills_every_place(case: tuple[list[str | None], list[str], int]) -> None:
    """However outcomes come, each place has its own id's outcome, or a timeout."""
    ids, order, count = case
    reducer = reducer_of(*ids)
    answered = order[:count]
    for answer in answered:
        reducer.accept(answer, TaskResult([], {"id": answer}))
    assert {*reducer} == {task_id for task_id in ids if task_id} - {*answered}
    reducer.expire(None)
    results = reducer.results()
    assert [result.index for result in results] == [*range(len(ids))]
    for task_id, result in zip(ids, results, strict=True):
        assert result.task_id == task_id
        assert result.submitted is (task_id is not None)
        if task_id in answered:
            assert result.results == {"id": task_id}
        else:
            assert isinstance(result.error, OperatorError)
