"""What one look at queues and documents says of a task that was waited for in vain."""

import pytest

from sandai.op.transport import (
    Evidence,
    QueueDepth,
    RedisBroker,
    ResultDocument,
    pending,
    resolve,
)

QUEUES = ("high.x.v1", "low.x.v1")


def seen(depths: dict[str, int | None], states: dict[str, str] | None = None) -> Evidence:
    """Return the evidence of queues and stored states."""
    evidence = Evidence(QUEUES)
    evidence.note_depths(QueueDepth(queue, count) for queue, count in depths.items())
    evidence.note_documents(ResultDocument(task, state) for task, state in (states or {}).items())
    return evidence


@pytest.mark.parametrize(
    ("evidence", "queue", "state", "depth"),
    [
        (seen({"high.x.v1": 0, "low.x.v1": 3}), "low.x.v1", "queued", 3),
        (seen({"high.x.v1": 3, "low.x.v1": 0}), "low.x.v1", "picked_up", 0),
        (seen({"high.x.v1": 3, "low.x.v1": None}), "low.x.v1", "unknown", None),
        (seen({}), "low.x.v1", "unknown", None),
        (Evidence(), None, "unknown", None),
        (seen({}), None, "unknown", None),
        (seen({"high.x.v1": 2, "low.x.v1": 3}), None, "queued", 5),
        (seen({"high.x.v1": 2, "low.x.v1": None}), None, "queued", 2),
        (seen({"high.x.v1": 0, "low.x.v1": 0}), None, "picked_up", 0),
        (seen({"high.x.v1": 0, "low.x.v1": None}), None, "unknown", None),
        (seen({"low.x.v1": 3}, {"t": "STARTED"}), "low.x.v1", "started", 3),
        (seen({}, {"t": "HALFWAY"}), "low.x.v1", "started", None),
        (seen({"low.x.v1": 0}, {"t": "SUCCESS"}), "low.x.v1", "finished", 0),
        (seen({"low.x.v1": 0}, {"t": "REVOKED"}), "low.x.v1", "finished", 0),
        (seen({"low.x.v1": 3}, {"another": "STARTED"}), "low.x.v1", "queued", 3),
    ],
)
def test_what_is_concluded(
    evidence: Evidence, queue: str | None, state: str, depth: int | None
) -> None:
    """A document says more than a queue; of a queue that cannot be read nothing is concluded."""
    error = evidence.error("t", 2.0, queue)
    assert (error.task_id, error.timeout) == ("t", 2.0)
    assert (error.state, error.queue, error.queue_depth) == (state, queue, depth)


def test_the_stored_state_is_told() -> None:
    """It is in the error and in its text; a task of which nothing is stored has none."""
    error = seen({}, {"t": "HALFWAY"}).error("t", 2.0)
    assert error.stored_state == "HALFWAY"
    assert "HALFWAY" in str(error)
    assert seen({}).error("t", 2.0).stored_state is None
    evidence = Evidence(QUEUES)
    evidence.note_documents([pending("t")])
    assert evidence.error("t", 2.0).stored_state == "PENDING"


def test_depths_of_what_is_no_redis() -> None:
    """An answer that is no number is a queue of which nothing is known."""
    broker = RedisBroker(resolve("op", "v1", env={}).broker_key)
    [count, nonsense] = broker.depths_in(["a", "b"], [7, b"OK"])
    assert (count.messages, nonsense.messages) == (7, None)
    assert nonsense.problem
