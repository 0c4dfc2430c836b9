"""A Redis to be broken, with a proxy before it for tasks and another for results."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from local_redis import HOST, LocalRedis
from scenarios import KEY, ClientView, World
from tcp_proxy import TcpProxy
from watching import eventually

OPERATOR = "bench"
QUEUE = f"normal.{OPERATOR}.v1"
QUEUES = [f"{priority}.{OPERATOR}.v1" for priority in ("high", "normal", "low", "very_low")]
ACQUIRE, IO = 1.0, 0.5
SLACK = 0.5
"""Seconds that a busy machine may add."""


@contextmanager
def in_time(seconds: float = ACQUIRE + IO) -> Iterator[None]:
    """Fail what takes longer."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took <= seconds + SLACK, f"{took:.2f} s"


class Rig:
    """
    A Redis, `broker` and `backend` before it, and clients of one colour that go through them.

    `redis` looks at the server past the proxies. The server keeps nothing when it ends.
    """

    def __init__(self, make_world: Callable[[str, Any], Any]) -> None:
        self._make_world = make_world
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            enter = stack.enter_context
            self.server = enter(LocalRedis())
            stack.callback(self.server.kill)  # sooner than it would end by itself
            self.broker = enter(TcpProxy(HOST, self.server.port))
            self.backend = enter(TcpProxy(HOST, self.server.port))
            self.redis: Any = enter(_persistent(self.server.url))
            self.world: World = enter(self._make_world(self.server.url, self.redis))
            self._threads = enter(ThreadPoolExecutor(4))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def client(self, **settings: Any) -> ClientView:
        """Make a client of the light operator with short limits."""
        chosen: dict[str, Any] = {
            "broker_url": self.broker.url,
            "result_backend": self.backend.url,
            "pool_acquire_timeout": ACQUIRE,
            "io_timeout": IO,
            **settings,
        }
        return self.world.client(OPERATOR, **chosen)

    # Submitting

    def queued(self) -> Counter[str]:
        """Count the messages in the operator's queues, by task id."""
        found: Counter[str] = Counter()
        for queue in QUEUES:
            messages = self.redis.lrange(queue, 0, -1)
            found.update(json.loads(message)["headers"]["id"] for message in messages)
        return found

    def asked(self, round_trips: int) -> bool:
        """Return whether clients have asked the broker so often."""
        return self.broker.round_trips >= round_trips

    # Waiting

    def begin(self, client: ClientView, ids: Sequence[str], timeout: float = 20) -> Future[Any]:
        """Begin to wait for tasks; return when they are all subscribed to."""
        future = self._threads.submit(client.get_all, ids, timeout)
        eventually(lambda: self.channels() >= len(ids), within=5)
        return future

    def channels(self) -> int:
        """Count the channels of results to which anybody is subscribed."""
        return len(self.redis.pubsub_channels(f"{KEY}*"))

    def store(
        self, ids: Sequence[str], *, publish: bool = True, pad: int = 0, px: int | None = None
    ) -> None:
        """Store results as operators do; each says its task's id."""
        pipe = self.redis.pipeline(transaction=False)
        for task_id in ids:
            reply = {"status": "success", "results": {"id": task_id, "pad": "x" * pad}}
            document = json.dumps({"status": "SUCCESS", "result": reply, "task_id": task_id})
            pipe.set(KEY + task_id, document, px=px)
            if publish:
                pipe.publish(KEY + task_id, document)
        pipe.execute()


def _persistent(url: str) -> redis.Redis:
    """Return a client for looking that outlives a restart of the server."""
    retry = Retry(ConstantBackoff(0.02), 50)
    return redis.Redis.from_url(url, client_name="watcher", retry=retry)


def new_ids(count: int) -> list[str]:
    """Draw ids of tasks that an operator got elsewhere."""
    return [str(uuid4()) for _ in range(count)]


def ids_in(replies: Sequence[Any]) -> list[str]:
    """Return which tasks' results these are."""
    return [reply["results"]["id"] for reply in replies]


def pending(client: ClientView) -> int:
    """Count the tasks that are waited for."""
    return sum(reader.pending for reader in client.statistics()[1].readers)


def pushing(client: ClientView) -> bool:
    """Return whether its one reader has a push connection."""
    return any(reader.pushing for reader in client.statistics()[1].readers)


def push_connects(client: ClientView) -> int:
    """Count the push connections that have been opened."""
    return sum(reader.push_connects for reader in client.statistics()[1].readers)


def sweeps(client: ClientView) -> int:
    """Count how often it looked, besides being pushed results."""
    return sum(reader.sweeps for reader in client.statistics()[1].readers)
