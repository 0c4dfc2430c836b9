"""What ``debug=True`` logs: each step, with its facts as attributes, and at no cost unheard."""

import logging
from collections.abc import Iterator

import pytest

from sandai.op.models import ClientPoolTimeoutError, OperatorError, TaskTimeoutError
from sandai.op.transport import (
    ResultDocument,
    Steps,
    TaskMessage,
    TransportError,
    resolve,
    steps_of,
)
from sandai.op.transport import _steps as module

logger = logging.getLogger("sandai.op.transport.test_steps")


class Records(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)

    @property
    def texts(self) -> list[str]:
        """Return what they say."""
        return [record.getMessage() for record in self.found]


@pytest.fixture
def records() -> Iterator[Records]:
    """Listen."""
    records = Records()
    logger.addHandler(records)
    logger.setLevel(logging.DEBUG)
    yield records
    logger.removeHandler(records)


@pytest.fixture
def steps() -> Steps:
    """Give a client's steps."""
    steps = steps_of(resolve("op", "v1", env={}, debug=True), logger)
    assert steps is not None
    return steps


def message(task_id: str) -> TaskMessage:
    """Return a task's message."""
    return TaskMessage(task_id, "name", "normal.op.v1", "", "", None, "", "", "", b"", ())


def test_nothing_without_debug() -> None:
    """Nobody asked: there is nothing to ask."""
    assert steps_of(resolve("op", "v1", env={}), logger) is None


def test_what_became_of_a_submission(steps: Steps, records: Records) -> None:
    """Queued, perhaps, or not: each says why, and has its facts."""
    messages = [message(task_id) for task_id in "abcd"]
    outcomes: list[OperatorError | None] = [
        None,
        TransportError("broke off", True),
        TransportError("no server"),
        ClientPoolTimeoutError("broker", 1, 8),
    ]
    steps.handing_in(messages)
    steps.queued(messages, outcomes)
    words = [text.partition(" in normal.op.v1")[0] for text in records.texts]
    assert words == [
        "task a queued",
        "task b perhaps queued",
        "task c not queued",
        "task d not queued",
    ]
    assert records.texts[1].endswith("broke off")
    for record, sent in zip(records.found, messages, strict=True):
        facts = vars(record)
        assert (facts["task_id"], facts["queue"]) == (sent.task_id, sent.queue)
        assert (facts["operator_name"], facts["operator_version"]) == ("op", "v1")
        assert facts["seconds"] >= 0
        assert record.levelno == logging.DEBUG


def test_the_queue_of_what_comes_after(steps: Steps, records: Records) -> None:
    """A result's record has the queue that its task was handed in to, where that is known."""
    steps.handing_in([message("a")])
    steps.arrived(ResultDocument("a", "SUCCESS", how="pushed"), deleted=True)
    steps.timed_out(TaskTimeoutError("b", 3, "picked_up", "low.op.v1"))
    steps.revoked(["a"], terminate=True)
    assert records.texts == [
        "task a: SUCCESS, pushed",
        "task a: its result is deleted",
        "task b: no result within 3 s; picked_up",
        "task a: revoked, and ended where it runs",
    ]
    queues = [vars(record)["queue"] for record in records.found]
    assert queues == ["normal.op.v1", "normal.op.v1", "low.op.v1", "normal.op.v1"]
    assert vars(records.found[0])["how"] == "pushed"
    assert vars(records.found[2])["state"] == "picked_up"


def test_memory_is_bounded(steps: Steps, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many tasks the last are known."""
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    steps.handing_in([message(str(number)) for number in range(10)])
    for task_id in ("6", "7"):
        steps.timed_out(TaskTimeoutError(task_id, 1))
    assert [vars(record)["queue"] for record in records.found] == [None, "normal.op.v1"]


def test_nothing_is_formatted_unheard(steps: Steps, records: Records) -> None:
    """Where nobody listens at level DEBUG no error is asked for its words."""

    class Mute(OperatorError):
        def __str__(self) -> str:
            raise AssertionError("was asked")

    logger.setLevel(logging.INFO)
    steps.handing_in([message("a")])
    steps.queued([message("a")], [Mute()])
    steps.watching(["a"], 1)
    steps.looked([ResultDocument("a", "SUCCESS")])
    steps.deleted(["a"])
    assert not records.found
