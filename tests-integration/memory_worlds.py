"""The scripted operator on ``memory://``, and the scenarios' worlds that lead to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import scripted_operator
from asyncio_world import AsyncioWorld
from sandai.op.transport.testing import FakeOperator, FakeTask, Reply, World, world
from thread_world import ThreadWorld

AnyWorld = ThreadWorld | AsyncioWorld


class Looking:
    """The commands of a Redis client that the scenarios and the scripted operator use."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._script: dict[str, Any] = {}

    def keys(self, pattern: str) -> list[bytes]:
        """List the stored results."""
        assert pattern == "celery-task-meta-*"
        return [f"celery-task-meta-{task_id}".encode() for task_id in self._world.results()]

    def dbsize(self) -> int:
        """Count the keys."""
        return self._world.size() + len(self._script)

    def get(self, key: str) -> bytes | None:
        """Read a counter."""
        return str(self._script[key]).encode() if key in self._script else None

    def incr(self, key: str) -> None:
        """Count."""
        self._script[key] = self._script.get(key, 0) + 1

    def rpush(self, key: str, *values: str) -> None:
        """Add to a list."""
        self._script.setdefault(key, []).extend(values)

    def lpop(self, key: str) -> str | None:
        """Take the first of a list."""
        values = self._script.get(key)
        return values.pop(0) if values else None

    def sadd(self, key: str, *members: str) -> None:
        """Add to a set."""
        self._script.setdefault(key, set()).update(members)

    def sismember(self, key: str, member: str) -> bool:
        """Look into a set."""
        return member in self._script.get(key, ())


class MemoryQueues:
    """The lists of a world."""

    prefetched = False

    def __init__(self, world: World) -> None:
        self._world = world

    def count(self, queue: str) -> int:
        """Count."""
        return len(self._world.queued(queue))

    def messages(self, queue: str) -> list[dict[str, Any]]:
        """Read."""
        return [{"id": t.task_id, "kwargs": t.kwargs} for t in self._world.queued(queue)]

    def delete(self, queue: str) -> None:
        """Delete."""
        with self._world.lock:
            self._world.store.delete([queue.encode()])

    def exists(self, queue: str) -> bool:
        """Tell."""
        with self._world.lock:
            return self._world.store.exists(queue.encode())


class Retried(Exception):
    """The task is to be tried again."""


class ScriptedFake(FakeOperator):
    """The scripted operator's own code, with as much of a Celery task as it uses."""

    def __init__(self, url: str, script: Looking) -> None:
        operator = (scripted_operator.NAME, scripted_operator.VERSION)
        super().__init__(*operator, url=url, concurrency=8, track_started=True)
        self._script = script

    def answer(self, task: FakeTask) -> object:
        """Do what the options say."""
        request = SimpleNamespace(
            id=task.task_id,
            root_id=task.root_id,
            parent_id=task.parent_id,
            delivery_info={"routing_key": task.queue},
            retries=0,
        )

        def update_state(state: str, meta: object) -> None:
            self.store(task.task_id, state, meta)

        bound: Any = SimpleNamespace(
            request=request, update_state=update_state, retry=lambda countdown: Retried()
        )
        try:
            value = scripted_operator.answer(bound, task.kwargs, self._script)
        except Retried as error:
            self.store(task.task_id, "RETRY", {"exc_type": type(error).__name__})
            request.retries = 1
            value = scripted_operator.answer(bound, task.kwargs, self._script)
        # As it stands: ``None``, too.
        return Reply(value, state="SUCCESS")


@contextmanager
def memory_world(kind: type[AnyWorld]) -> Iterator[AnyWorld]:
    """Give clients of one colour, and the scripted operator, in a world of their own."""
    here = world(f"memory://{uuid4()}")
    looking = Looking(here)
    with (
        ScriptedFake(here.url, looking),
        kind(here.url, looking, MemoryQueues(here)) as scenario_world,
    ):
        yield scenario_world
