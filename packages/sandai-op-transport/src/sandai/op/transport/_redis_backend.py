"""The Redis result backend: keys, budgets, and looking for threads."""

import os
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

from redis.exceptions import ResponseError

from ._backend import BackendStatistics, Reader
from ._config import BackendKey
from ._documents import DocumentDecoder, ResultDocument
from ._errors import TransportError
from ._freeze import thaw
from ._limiter import limiter_of
from ._pool import ConnectionPool
from ._readers import Readers
from ._redis import Command, RedisConnection, RedisConnector, RedisOpener, execute, hurried
from ._url import RedisAddress

_TASK_PREFIX = "celery-task-meta-"


class RedisBackend:
    """
    Results as Celery's Redis backend stores them: ``celery-task-meta-<task id>``.

    The limit is split once: commands use at most ``min(poll concurrency, limit
    - 1)`` connections, push the rest, so one is always kept for push. At a
    limit of 1 there is no push.
    """

    def __init__(self, key: BackendKey) -> None:
        options = thaw(key.transport_options)
        address = RedisAddress.parse("result_backend", key.result_backend, options)
        self.connector = RedisConnector(address, key.io_timeout, f"sandai-op:backend:{os.getpid()}")
        self.decoder = DocumentDecoder(key.result_serializer, sorted(key.accept_content))
        self.reply_to = str(uuid4())
        commands = max(1, min(key.backend_poll_concurrency, key.backend_pool_limit - 1))
        self.limiter = limiter_of(key, "backend", commands)
        self.push_limiter = limiter_of(key, "backend push", key.backend_pool_limit - commands)
        self._prefix = _result_prefix(address.key_prefix) + _TASK_PREFIX
        self._prefix_length = len(self._prefix)
        self._pool: ConnectionPool[RedisConnection] = ConnectionPool(
            self.limiter, RedisOpener(self.connector)
        )
        self._readers = Readers()

    def before_submit(self) -> None:
        """Nothing to do: results are keys."""

    def key(self, task_id: str) -> str:
        """Return the key of a task's result, which is also its channel."""
        return self._prefix + task_id

    def task_id(self, key: bytes) -> str:
        """Return the task whose result is stored under *key*."""
        return key.decode("utf-8", "replace")[self._prefix_length :]

    def documents(self, task_ids: Sequence[str], payloads: Sequence[Any]) -> list[ResultDocument]:
        """
        Return the documents among the replies to an MGET of *task_ids*.

        Raises :class:`TransportError` for what is no such reply.
        """
        if not isinstance(payloads, list) or len(payloads) != len(task_ids):
            raise TransportError(f"Redis at {self.connector.address.label} answers wrongly to MGET")
        return [
            self.decoder.decode(task_id, payload)
            for task_id, payload in zip(task_ids, payloads, strict=True)
            if payload is not None
        ]

    def look(
        self, task_ids: Sequence[str], *, acquire_timeout: float, timeout: float | None = None
    ) -> list[ResultDocument]:
        """
        Ask for results with one MGET; see :meth:`Backend.look`.

        A *timeout* (seconds) shorter than the I/O timeout takes its place.
        """
        if not task_ids:
            return []
        payloads = self._ask(("MGET", *map(self.key, task_ids)), acquire_timeout, timeout)
        return self.documents(task_ids, payloads)

    def delete(self, task_ids: Sequence[str], *, acquire_timeout: float) -> None:
        """Delete results with one DEL."""
        if task_ids:
            self._ask(("DEL", *map(self.key, task_ids)), acquire_timeout)

    def reader(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """Return the one reader of *owner*."""
        return self._readers.get(owner, make)

    def statistics(self) -> BackendStatistics:
        """Return a snapshot."""
        return BackendStatistics(
            self.limiter.statistics(), self.push_limiter.statistics(), self._readers.statistics()
        )

    def close(self) -> None:
        """Close readers and connections."""
        self._readers.close()
        self._pool.close()

    def _ask(self, command: Command, acquire_timeout: float, timeout: float | None = None) -> Any:
        shorter = timeout if timeout and timeout < self.connector.io_timeout else None
        with (
            self._pool.lease(acquire_timeout, io_timeout=shorter, reuse=True) as connection,
            hurried(connection, shorter),
        ):
            [reply] = execute(self.connector, connection, [command])
            if isinstance(reply, ResponseError):
                # Within the lease: a server that refuses may be no master any more.
                raise self.connector.failure(reply, maybe_done=False)
        return reply


def _result_prefix(global_keyprefix: str) -> str:
    """Return the prefix as Celery's result backends join it."""
    if global_keyprefix and global_keyprefix[-1] not in ":_-.":
        return global_keyprefix + "_"
    return global_keyprefix
