"""A batch in pieces: each task has its outcome, and one that fails ends the trying."""

from typing import Any

import pytest

from sandai.op.models import (
    ClientPoolTimeoutError,
    InvalidPriorityError,
    InvalidTaskError,
    OperatorConnectionError,
)
from sandai.op.transport import (
    BatchSubmission,
    MessageFactory,
    Outcome,
    TaskBuilder,
    TaskControls,
    TransportError,
    _batch_submission,
    resolve,
)
from sandai.op.transport._app import broker_app

CONFIG = resolve("clipper", "v1", env={})
FACTORY = MessageFactory(broker_app(CONFIG.broker_key), "msgpack")
BAD: Any = ([{"uri": 3}], {})


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send three tasks at a time."""
    monkeypatch.setattr(_batch_submission, "CHUNK", 3)


def batch_of(tasks: Any, **controls: Any) -> BatchSubmission:
    """Return a batch that is to be submitted."""
    return BatchSubmission(TaskBuilder(CONFIG), FACTORY, "", tasks, TaskControls(**controls))


def submitted(batch: BatchSubmission, *pieces: list[Outcome] | None) -> list[list[Any]]:
    """Submit in pieces with these outcomes, ``None`` for success; return what was sent."""
    sent = []
    outcomes = iter(pieces)
    while not batch.done:
        while batch.prepare():
            pass
        if batch.messages:
            sent.append([message.raw_body[1]["options"]["n"] for message in batch.messages])
            settled = next(outcomes, None)
            batch.settle([None] * len(batch.messages) if settled is None else settled)
        else:
            batch.settle([])
    return sent


def tasks(count: int) -> list[tuple[list[Any], dict[str, Any]]]:
    """Return tasks with a number."""
    return [([], {"n": n}) for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7])
def test_all_are_sent_in_order(count: int) -> None:
    """However the tasks divide, each is sent once, in order, and has its own id."""
    batch = batch_of(tasks(count))
    sent = submitted(batch)
    assert [n for piece in sent for n in piece] == list(range(count))
    assert all(len(piece) == 3 for piece in sent[:-1])
    assert len(set(map(str, batch.outcomes))) == count
    assert all(isinstance(outcome, str) for outcome in batch.outcomes)


def test_a_generator_is_a_batch() -> None:
    """Any iterable of pairs will do."""
    assert submitted(batch_of(iter(tasks(4)))) == [[0, 1, 2], [3]]


def test_invalid_tasks_stand_in_their_places() -> None:
    """They are not sent, also where nothing else is."""
    batch = batch_of([BAD, *tasks(3), BAD, BAD, BAD, BAD])
    assert submitted(batch) == [[0, 1, 2]]
    kinds = [type(outcome).__name__ for outcome in batch.outcomes]
    assert kinds == ["InvalidTaskError", "str", "str", "str", *["InvalidTaskError"] * 4]
    assert "input_artifacts[0].uri" in str(batch.outcomes[4])


def test_a_connection_that_broke() -> None:
    """What was in doubt names its task; the rest is not tried, and certainly not queued."""
    broke = TransportError("it broke off", True)
    batch = batch_of([*tasks(5), BAD, *tasks(2)])
    assert submitted(batch, [None, broke, broke]) == [[0, 1, 2]]
    first, *others = batch.outcomes
    assert isinstance(first, str)
    told = [error for error in others if isinstance(error, OperatorConnectionError)]
    assert len(told) == 6
    assert [error.task_id is not None for error in told] == [True, True, *[False] * 4]
    assert isinstance(batch.outcomes[5], InvalidTaskError)


def test_no_connection_in_time() -> None:
    """The first piece that gets none ends it: the others do not wait as long again."""
    late = ClientPoolTimeoutError("broker", 0.1, 8, 8, 3)
    batch = batch_of(tasks(7))
    assert submitted(batch, None, [late] * 3) == [[0, 1, 2], [3, 4, 5]]
    assert batch.outcomes[3:] == [late] * 4


def test_one_that_is_too_large_ends_nothing() -> None:
    """An error of one task is its own."""
    fat = InvalidTaskError("task", "too large")
    batch = batch_of(tasks(5))
    assert submitted(batch, [None, None, fat]) == [[0, 1, 2], [3, 4]]
    assert batch.outcomes[2] is fat
    assert all(isinstance(outcome, str) for outcome in [*batch.outcomes[:2], *batch.outcomes[3:]])


def test_controls_are_checked_first() -> None:
    """Bad controls, or what is no batch, raise before anything is made."""
    with pytest.raises(InvalidPriorityError):
        batch_of([], priority="urgent")
    with pytest.raises(InvalidTaskError):
        batch_of("tasks")


def test_ids_of_the_callers_own() -> None:
    """A task goes out under the id it was given, as one that may have been sent before."""
    batch = batch_of([([], {}, "mine"), ([], {}), ([], {}, ""), ([], {}, 3)])
    while batch.prepare():
        pass
    assert [message.task_id for message in batch.messages] == batch.outcomes[:2]
    assert [message.attempt for message in batch.messages] == [2, 0]
    assert batch.outcomes[0] == "mine"
    refused = batch.outcomes[2:]
    assert all(isinstance(each, InvalidTaskError) and each.path == "task_id" for each in refused)
