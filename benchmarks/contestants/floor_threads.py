"""The floor for threads: one caller, many callers and a reader, a batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import redis
from redis.retry import Retry

from .driving import Call, time_batch
from .floor_wire import (
    MOST_TASKS,
    PREFIX,
    Books,
    check,
    connection_kwargs,
    message,
    new_id,
    stamped,
    take,
    without_retry,
)
from .job import Job


@contextmanager
def _connections(job: Job) -> Iterator[tuple[Any, Any]]:
    """Open one to the broker and one to the backend."""
    broker: Any = redis.Connection(
        retry=without_retry(Retry), **connection_kwargs(job.broker_url, 2)
    )
    push: Any = redis.Connection(
        retry=without_retry(Retry), **connection_kwargs(job.backend_url, 3)
    )
    try:
        for connection in (broker, push):
            connection.connect()
        # redis-py's own handler formats each message for its debug log.
        push._parser.set_pubsub_push_handler(lambda response: response)
        yield broker, push
    finally:
        for connection in (broker, push):
            connection.disconnect()


@contextmanager
def one_caller(job: Job) -> Iterator[Call]:
    """One thread writes and reads: there is nobody else to wait for."""
    with _connections(job) as (broker, push):
        template, books = message(job), Books()

        def call(_: int) -> None:
            task_id = new_id()
            key = PREFIX + task_id
            broker.send_command("LPUSH", job.queue, stamped(template, task_id))
            push.send_packed_command(push.pack_commands(books.commands((), (key,))))
            broker.read_response()
            while True:
                for found, document in books.documents(push.read_response(push_request=True)):
                    if found == key:
                        push.send_packed_command(push.pack_commands(books.commands((key,), ())))
                        return check(document)

        yield call


class _Threads:
    """Callers that write, whoever comes first for all; a reader thread that wakes them."""

    def __init__(self, job: Job, broker: Any, push: Any) -> None:
        self._queue = job.queue
        self._template = message(job)
        self._broker = broker
        self._push = push
        self._books = Books()
        self._waiting: dict[bytes, SimpleQueue[bytes]] = {}
        self._messages: deque[bytes] = deque()
        self._join: deque[bytes] = deque()
        self._leave: deque[bytes] = deque()
        self._pushing = threading.Lock()
        self._writing = threading.Lock()

    def call(self, _: int) -> None:
        """Push a task and wait for its result."""
        task_id = new_id()
        key = PREFIX + task_id
        box: SimpleQueue[bytes] = SimpleQueue()
        self._waiting[key] = box
        self._messages.append(stamped(self._template, task_id))
        self._join.append(key)
        while self._messages and self._pushing.acquire(blocking=False):
            try:
                if messages := take(self._messages):
                    self._broker.send_command("LPUSH", self._queue, *messages)
                    self._write()
                    self._broker.read_response()
            finally:
                self._pushing.release()
        self._write()
        check(box.get())

    def _write(self) -> None:
        while (self._join or self._leave) and self._writing.acquire(blocking=False):
            try:
                if commands := self._books.commands(take(self._leave), take(self._join)):
                    self._push.send_packed_command(self._push.pack_commands(commands))
            finally:
                self._writing.release()

    def read(self) -> None:
        """Hand over results until the connection is closed."""
        try:
            while True:
                found = list(self._books.documents(self._push.read_response(push_request=True)))
                while self._push.can_read(timeout=0):
                    found += self._books.documents(self._push.read_response(push_request=True))
                done = [
                    (box, document)
                    for key, document in found
                    if (box := self._settle(key)) is not None
                ]
                self._write()
                for box, document in done:
                    box.put(document)
        except (redis.RedisError, OSError, AttributeError):
            if self._waiting:
                raise

    def _settle(self, key: bytes) -> SimpleQueue[bytes] | None:
        box = self._waiting.pop(key, None)
        if box is not None:
            self._leave.append(key)
        return box


@contextmanager
def many_callers(job: Job) -> Iterator[Call]:
    """Threads share the two connections."""
    with _connections(job) as (broker, push):
        threads = _Threads(job, broker, push)
        reader = threading.Thread(target=threads.read)
        reader.start()
        yield threads.call
        push._sock.shutdown(2)  # the reader is in a recv(), which ends
        reader.join()


def batch(job: Job) -> None:
    """Push everything, and read what comes meanwhile; one thread does it all."""
    with _connections(job) as (broker, push):
        template, books = message(job), Books()
        places: dict[bytes, int] = {}
        documents: list[bytes | None] = [None] * job.requests

        def read(done: deque[bytes]) -> None:
            for key, document in books.documents(push.read_response(push_request=True)):
                if (place := places.pop(key, None)) is not None:
                    documents[place] = document
                    done.append(key)

        def work() -> None:
            done: deque[bytes] = deque()
            sent = 0
            while sent < job.requests or places:
                join: list[bytes] = []
                if sent < job.requests:
                    ids = [new_id() for _ in range(min(MOST_TASKS, job.requests - sent))]
                    join = [PREFIX + task_id for task_id in ids]
                    places.update(zip(join, range(sent, sent + len(ids)), strict=True))
                    messages = [stamped(template, task_id) for task_id in ids]
                    broker.send_command("LPUSH", job.queue, *messages)
                    sent += len(ids)
                if commands := books.commands(take(done), join):
                    push.send_packed_command(push.pack_commands(commands))
                if join:
                    broker.read_response()
                else:
                    read(done)
                while len(done) < MOST_TASKS and push.can_read(timeout=0):
                    read(done)
            push.send_packed_command(push.pack_commands(books.commands(list(done), ())))
            for document in documents:
                assert document is not None
                check(document)

        time_batch(work)
