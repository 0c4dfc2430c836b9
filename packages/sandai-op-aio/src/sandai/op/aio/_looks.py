"""How a loop looks at results and deletes them: many to a command on Redis."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from redis.exceptions import ResponseError

from sandai.op.models import OperatorError
from sandai.op.transport import Backend, Command, RedisBackend, ResultDocument

from ._flusher import Entry, Flusher
from ._redis import LoopConnection
from ._turns import Breath
from ._workers import Workers

_MOST_KEYS = 1000
#: Documents that are decoded before others get their turn.
_DECODED = 50


class Looks(Protocol):
    """A loop's looks at one backend; its calls raise as :meth:`Backend.look` does."""

    async def prepare(self, *, patience: float) -> None:
        """Do what must be done before a task is sent."""

    async def look(self, task_ids: Sequence[str], *, patience: float) -> list[ResultDocument]:
        """Return the documents that are stored now."""

    async def delete(self, task_ids: Sequence[str], *, patience: float) -> None:
        """Delete results."""

    def close(self) -> None:
        """Close what is open; in any thread."""


def looks_of(backend: Backend, loop: asyncio.AbstractEventLoop) -> Looks:
    """Return a loop's looks at a backend."""
    return RedisLooks(backend, loop) if isinstance(backend, RedisBackend) else WorkerLooks(backend)


class RedisLooks:
    """MGET and DEL; who asks in the same turn of the loop shares a command."""

    def __init__(self, backend: RedisBackend, loop: asyncio.AbstractEventLoop) -> None:
        self._backend = backend
        self._flusher = Flusher(
            backend.limiter, backend.connector, loop, self._ask, "look", _MOST_KEYS
        )

    async def prepare(self, *, patience: float) -> None:
        """Nothing: results are stored where they are looked for."""

    async def look(self, task_ids: Sequence[str], *, patience: float) -> list[ResultDocument]:
        """Ask for results."""
        if not task_ids:
            return []
        found: list[ResultDocument] = await self._flusher.put(
            ("MGET", task_ids), len(task_ids), patience
        )
        return found

    async def delete(self, task_ids: Sequence[str], *, patience: float) -> None:
        """Delete results."""
        if task_ids:
            await self._flusher.put(("DEL", task_ids), len(task_ids), patience)

    def close(self) -> None:
        """Close the connections at once: nobody's looks are wanted any more."""
        self._flusher.pool.close(busy=True)

    async def _ask(self, connection: LoopConnection, entries: Sequence[Entry]) -> None:
        asked = {
            name: list(dict.fromkeys(t for e in entries if e.item[0] == name for t in e.item[1]))
            for name in ("DEL", "MGET")
        }
        commands: dict[str, Command] = {
            name: (name, *map(self._backend.key, task_ids))
            for name, task_ids in asked.items()
            if task_ids
        }
        answers = dict(
            zip(commands, await connection.execute(list(commands.values())), strict=True)
        )
        refusals: dict[str, OperatorError] = {
            name: self._backend.connector.failure(answer, maybe_done=False)
            for name, answer in answers.items()
            if isinstance(answer, ResponseError)
        }
        found: dict[str, ResultDocument] = {}
        if "MGET" in answers and "MGET" not in refusals:
            found = await self._decode(asked["MGET"], answers["MGET"])
        for entry in entries:
            name, task_ids = entry.item
            own = [found[task_id] for task_id in task_ids if task_id in found]
            entry.resolve(own, refusals.get(name))
        for refusal in refusals.values():
            # A server that refuses may be no master any more: another connection next time.
            raise refusal

    async def _decode(self, task_ids: Sequence[str], payloads: Any) -> dict[str, ResultDocument]:
        if not isinstance(payloads, list) or len(payloads) != len(task_ids):
            self._backend.documents(task_ids, payloads)  # raises
        there = [number for number, payload in enumerate(payloads) if payload is not None]
        found = {}
        breath = Breath()
        for start in range(0, len(there), _DECODED):
            numbers = there[start : start + _DECODED]
            for document in self._backend.documents(
                [task_ids[number] for number in numbers], [payloads[number] for number in numbers]
            ):
                found[document.task_id] = document
            await breath()
        return found


class WorkerLooks:
    """Look through a backend that blocks, in its worker threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._workers = Workers.of(backend, backend.limiter)

    async def prepare(self, *, patience: float) -> None:
        """Have a reply queue declared."""
        await self._workers.run(lambda acquire_timeout: self._backend.before_submit(), patience)

    async def look(self, task_ids: Sequence[str], *, patience: float) -> list[ResultDocument]:
        """Ask for results."""
        if not task_ids:
            return []
        found: list[ResultDocument] = await self._workers.run(
            partial(self._backend.look, task_ids), patience
        )
        return found

    async def delete(self, task_ids: Sequence[str], *, patience: float) -> None:
        """Delete results."""
        if task_ids:
            await self._workers.run(partial(self._backend.delete, task_ids), patience)

    def close(self) -> None:
        """Let the worker threads end; calls under way are made."""
        self._workers.close()
