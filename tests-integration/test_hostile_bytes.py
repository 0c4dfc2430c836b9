"""Hostile documents among good results: each fails its own task, and nothing else notices."""

from __future__ import annotations

import json
import logging
import sys
import threading
from typing import Any

import pytest

from hostile_documents import HOSTILE
from sandai.op.models import InvalidResultFormatError, InvalidTaskError, OperatorError
from scenarios import ClientView, Submission, World
from watching import eventually

GOOD_PER_HOSTILE = 3
CONTROLS = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]}


def good(number: int, *, task_id: str = "") -> bytes:
    """Return the document of a result that says its number."""
    reply = {"status": "success", "artifacts": [], "results": {"n": number}}
    return json.dumps({"status": "SUCCESS", "result": reply, "task_id": task_id}).encode()


def documents() -> list[tuple[bytes, type[OperatorError] | None]]:
    """Return every hostile document with good ones around it."""
    mixed: list[tuple[bytes, type[OperatorError] | None]] = []
    for payload, kind in HOSTILE.values():
        mixed.append((payload, kind))
        mixed += [(good(len(mixed) + n), None) for n in range(GOOD_PER_HOSTILE)]
    return mixed


def submitted(client: ClientView, count: int) -> list[Submission]:
    """Submit tasks for which there is no operator: the test answers."""
    return client.batch_submit([([], {"n": n}) for n in range(count)])


def store(world: World, submissions: list[Submission], *, how: str) -> None:
    """Store all the documents in one transaction, so that they are read together."""
    pipeline = world.redis.pipeline(transaction=True)
    for submission, (payload, _) in zip(submissions, documents(), strict=True):
        key = f"celery-task-meta-{submission.task_id}"
        pipeline.set(key, payload, ex=60)
        if how == "pushed":
            pipeline.publish(key, payload)
    pipeline.execute()


def check(results: list[Any]) -> None:
    """Check that each task got what its own document is."""
    for position, (result, (payload, kind)) in enumerate(zip(results, documents(), strict=True)):
        if kind is None:
            assert result.results == {"n": position}, (position, result.error)
            continue
        error = result.error
        assert type(error) is kind, (payload[:80], error)
        assert vars(error)["task_id"] == result.task_id
        assert len(str(error)) < 2100
        assert not set(str(error)) & CONTROLS
        if isinstance(error, InvalidResultFormatError) and isinstance(error.result, bytes):
            assert error.result == payload


@pytest.mark.parametrize("how", ["pushed", "stored", "there before"])
def test_neighbours(world: World, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """A batch of good and hostile results, by push, by a sweep, and by the first look."""
    client = world.client("nobody")
    submissions = submitted(client, len(documents()))
    if how == "there before":
        store(world, submissions, how=how)
        results = client.batch_collect(submissions)
    else:
        collected: list[Any] = []
        collector = threading.Thread(
            target=lambda: collected.extend(client.batch_collect(submissions))
        )
        collector.start()
        channel = f"celery-task-meta-{submissions[-1].task_id}"
        eventually(lambda: world.redis.pubsub_numsub(channel)[0][1], within=10)
        store(world, submissions, how=how)
        collector.join(30)
        assert not collector.is_alive()
        results = collected
    check(results)
    # The reader is the same as before, and works.
    [again] = client.batch_submit([([], {})])
    world.redis.set(f"celery-task-meta-{again.task_id}", good(7), ex=60)
    assert client.batch_collect([again])[0].results == {"n": 7}
    assert "antigravity" not in sys.modules
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_handles(world: World) -> None:
    """A handle tells each hostile document's error, or its raw reply, and looks without harm."""
    client = world.client("nobody")
    for position, (payload, _) in enumerate(HOSTILE.values()):
        task_id = f"handle-{position}"
        world.redis.set(f"celery-task-meta-{task_id}", payload, ex=60)
        handle = client.attach(task_id)
        assert handle.ready()
        assert handle.state() in ("SUCCESS", "FAILURE", "REVOKED")
        try:
            handle.get(timeout=0)
        except OperatorError as error:
            said = str(error)
            assert not set(said) & CONTROLS


def test_a_document_of_another_task(world: World) -> None:
    """A document counts for the key where it stands, never for the task that it names."""
    client = world.client("nobody")
    one, other = client.batch_submit([([], {}), ([], {})])
    assert one.task_id
    assert other.task_id
    for task_id, payload in (
        (one.task_id, good(1, task_id=other.task_id)),
        (other.task_id, good(2, task_id=one.task_id)),
    ):
        world.redis.set(f"celery-task-meta-{task_id}", payload, ex=60)
        world.redis.publish(f"celery-task-meta-{task_id}", payload)
    results = client.batch_collect([one, other])
    assert [result.results for result in results] == [{"n": 1}, {"n": 2}]


class Odd(dict[str, Any]):
    """A dict that fails when it is encoded."""

    def items(self) -> Any:
        """Fail."""
        raise OSError("gone")


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_payloads_that_cannot_be_sent(world: World, serializer: str) -> None:
    """In a batch each is an InvalidTaskError with its place; its neighbours are queued."""
    client = world.client("nobody", task_serializer=serializer)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    endless: dict[str, Any] = {}
    endless["a"] = endless
    bad: list[tuple[Any, str]] = [
        ({"a": {"b": object()}}, "options.a.b"),
        ({"a": [{1: 2}]}, "options.a[0]"),
        ({"a": endless}, "options.a.a"),
        ({"a": deep}, "options.a" + "[0]" * 47),
        ({"a": Odd(x=1)}, "options.a"),
        ({"a": 10**5000}, "options.a"),
    ]
    if serializer == "json":
        bad.append(({"a": {"__type__": "uuid", "__value__": 1}}, "options.a"))
    else:
        bad.append(({"a": "\ud800"}, "options.a"))
    tasks: list[Any] = [([], options) for spoilt, _ in bad for options in (spoilt, {"fine": True})]
    submissions = client.batch_submit(tasks)
    for (_, path), submission in zip(bad, submissions[::2], strict=True):
        assert isinstance(submission.error, InvalidTaskError), path
        assert submission.error.path == path
        assert not submission.submitted
    assert all(submission.submitted for submission in submissions[1::2])
    assert world.redis.llen("normal.nobody.v1") == len(bad)
