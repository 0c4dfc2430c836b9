"""An operator in this process: it takes tasks and answers them as a Celery worker does."""

import itertools
import logging
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from sandai.op.models import (
    VALID_PRIORITIES,
    OperatorDescription,
    OperatorError,
    TaskCancelledError,
    TaskRequest,
    TaskResult,
    error_reply,
    queue_name,
    task_name,
)

from ._documents import document, failure, revoked
from ._messages import FakeTask, decode
from ._replies import Reply
from ._revocations import Revocations
from ._store import WrongType
from ._world import RESULT, world

logger = logging.getLogger("sandai.op.transport")

Handler = Callable[[TaskRequest], object]

_REMEMBERED = 1000
_GRACE = 5.0
_numbers = itertools.count(1)


class FakeOperator:
    """
    Serve one operator's queues on ``memory://``, from threads, until it is closed.

    *handler* gets a :class:`TaskRequest` and returns a ``TaskResult``, ``None``, a
    :class:`Reply`, or a raw envelope. A ``sandai.op.models`` error that it raises becomes
    an error envelope; any other exception fails the Celery task. Without a handler the
    answer is the task's own artifacts, and its options as results.

    Descriptions, probes, late and cancelled tasks are answered without the handler.
    *concurrency* tasks run at once; results expire after *result_expires* seconds.
    """

    def __init__(
        self,
        name: str,
        version: str,
        handler: Handler | None = None,
        *,
        url: str = "memory://",
        concurrency: int = 4,
        description: OperatorDescription | None = None,
        track_started: bool = False,
        result_serializer: str = "json",
        accept_content: Iterable[str] = ("json", "msgpack"),
        result_expires: float = 86_400,
    ) -> None:
        self.name = name
        self.version = version
        self.world = world(url)
        self.hostname = f"{name}-{version}-{next(_numbers)}@memory"
        self.queue_names = [queue_name(p, name, version) for p in VALID_PRIORITIES]
        self.description = description or OperatorDescription(
            f"{name} {version}, in memory", {"type": "object"}, {"type": "object"}
        )
        #: Tasks with one of these cancel keys are skipped.
        self.cancelled: set[str] = set()
        #: The last thousand tasks that came, oldest first.
        self.tasks: deque[FakeTask] = deque(maxlen=_REMEMBERED)
        #: How many came altogether.
        self.received = 0
        self._handler = handler or _echo
        self._concurrency = concurrency
        self._track_started = track_started
        self._serializer = result_serializer
        self._accept = tuple(accept_content)
        self._expires = result_expires
        self._scripted: deque[Any] = deque()
        self._running: dict[str, FakeTask] = {}
        self._revocations = Revocations()
        self._queues = {queue.encode(): queue for queue in self.queue_names}
        self._arrived = threading.Condition(self.world.lock)
        self._seen = threading.Condition(self.world.lock)
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()

    # For tests

    def replies(self, *replies: object) -> None:
        """
        Script the answers to the next tasks, one each, before the handler's turn.

        An answer is what a handler may return, an exception to raise, or a function of the
        request.
        """
        self._scripted.extend(replies)

    def wait_for(self, count: int, timeout: float = 10.0) -> list[FakeTask]:
        """
        Wait until so many tasks have come altogether; return those that are remembered.

        Raises ``TimeoutError`` after *timeout* seconds.
        """
        with self.world.lock:
            if not self._seen.wait_for(lambda: self.received >= count, timeout):
                raise TimeoutError(f"{self.received} of {count} tasks came in {timeout:g} s")
            return list(self.tasks)

    def store(
        self, task_id: str, state: str, result: object = None, *, publish: bool = True
    ) -> None:
        """Store a state or a result of a task, from a handler or from outside."""
        task = FakeTask(task_id, "", {})
        self._write(task, document(task, state, result, serializer=self._serializer), publish)

    def start(self) -> Self:
        """Begin to take tasks; entering the ``with`` block does it."""
        if self._threads:
            return self
        with self.world.lock:
            self.world.operators.append(self)
        for number in range(self._concurrency):
            name = f"sandai-op-fake-{self.hostname}-{number}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def close(self) -> None:
        """Take no more tasks and wait, for some seconds, for those that run."""
        if self._pid != os.getpid():
            return  # its threads are the parent's
        with self.world.lock:
            if self in self.world.operators:
                self.world.operators.remove(self)
            self._closing.set()
            self._arrived.notify_all()
        until = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            running = ", ".join(self._running) or "none"
            warnings.warn(
                f"the handler of {self!r} has not ended; running: {running}",
                ResourceWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FakeOperator {self.name} {self.version} on {self.world.url}>"

    # Answering

    def answer(self, task: FakeTask) -> object:
        """Return the answer to a task, of whatever kind; a subclass may decide otherwise."""
        request = task.request
        if request.is_description:
            return self.description
        request.raise_if_expired()
        if request.cancel_key and request.cancel_key in self.cancelled:
            raise TaskCancelledError(request.task_id, request.cancel_key)
        if request.is_probe:
            return None
        try:
            scripted = self._scripted.popleft()
        except IndexError:
            scripted = self._handler
        if isinstance(scripted, type) and issubclass(scripted, BaseException):
            return scripted()
        return scripted(request) if callable(scripted) else scripted

    def called(self, key: bytes, count: int) -> None:
        """Have so many threads look for tasks, if the queue is one of ours."""
        if key in self._queues:
            self._arrived.notify(count)

    def revoke(self, task_ids: Iterable[str], *, terminate: bool = False) -> None:
        """Drop tasks that are queued or still to come; with *terminate*, those that run, too."""
        revoking = list(task_ids)
        with self.world.lock:
            for task in self._revocations.revoke(revoking, self._queues, self.world.store):
                self._write(task, revoked(task, "revoked", serializer=self._serializer))
            for task_id in revoking if terminate else ():
                if (running := self._running.pop(task_id, None)) is not None:
                    payload = revoked(running, "terminated", serializer=self._serializer)
                    self._write(running, payload)

    def inspect(self, command: str) -> Any:
        """Return what a worker answers to one of ``control``'s questions."""
        with self.world.lock:
            answers: dict[str, Any] = {
                "ping": {"ok": "pong"},
                "active": [self._told(task) for task in self._running.values()],
                "active_queues": [{"name": queue} for queue in self.queue_names],
                "registered": [task_name(self.name, self.version)],
                "reserved": [],
                "scheduled": [],
                "revoked": self._revocations.ids(),
                "stats": {
                    "pid": self._pid,
                    "pool": {"max-concurrency": self._concurrency},
                    "total": {task_name(self.name, self.version): self.received},
                },
            }
        return answers.get(command, {"error": f"memory:// does not know {command!r}"})

    def _told(self, task: FakeTask) -> dict[str, Any]:
        return {
            "id": task.task_id,
            "name": task_name(self.name, self.version),
            "args": [],
            "kwargs": task.kwargs,
            "hostname": self.hostname,
        }

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            try:
                task = decode(*taken, accept=self._accept)
            except Exception:
                # As a worker does: it drops what it cannot read.
                logger.exception("%r cannot read a message in %s", self, taken[0])
                continue
            self._serve(task)
            # A thread that waits for the next one keeps nothing of this.
            del task, taken

    def _take(self) -> tuple[str, bytes] | None:
        with self.world.lock:
            while not self._closing.is_set():
                for key, queue in self._queues.items():
                    with suppress(WrongType):
                        if (envelope := self.world.store.pop(key)) is not None:
                            return queue, envelope
                self._arrived.wait()
        return None

    def _serve(self, task: FakeTask) -> None:
        with self.world.lock:
            self.tasks.append(task)
            self.received += 1
            self._running[task.task_id] = task
            self._seen.notify_all()
            if self._revocations.covers(task):
                self._finish(task, revoked(task, "revoked", serializer=self._serializer))
                return
        if self._track_started:
            meta = {"pid": self._pid, "hostname": self.hostname}
            self._write(task, document(task, "STARTED", meta, serializer=self._serializer))
        try:
            reply = self.answer(task)
            if isinstance(reply, Reply):
                self._play(task, reply)
                return
            payload = self._payload(task, reply)
        except OperatorError as error:
            payload = self._payload(task, error_reply(error))
        except Exception as error:
            payload = failure(task, error, serializer=self._serializer)
        self._finish(task, payload)

    def _play(self, task: FakeTask, reply: Reply) -> None:
        if reply.delay:
            self._closing.wait(reply.delay)
        payload = self._payload(task, reply.value, reply.state)
        self._finish(
            task, payload, stored=reply.stored, published=reply.published, times=reply.times
        )

    def _payload(self, task: FakeTask, value: object, state: str | None = None) -> bytes:
        try:
            if state == "REVOKED":
                return revoked(task, "revoked", serializer=self._serializer)
            if isinstance(value, BaseException):
                raise value
            if value is None and state is None:
                value = TaskResult()
            if isinstance(value, TaskResult | OperatorDescription):
                value = value.to_reply()
            return document(task, state or "SUCCESS", value, serializer=self._serializer)
        except OperatorError as error:
            return document(task, "SUCCESS", error_reply(error), serializer=self._serializer)
        except Exception as error:
            return failure(task, error, serializer=self._serializer)

    def _finish(
        self,
        task: FakeTask,
        payload: bytes,
        *,
        stored: bool = True,
        published: bool = True,
        times: int = 1,
    ) -> None:
        with self.world.lock:
            if self._running.pop(task.task_id, None) is None:
                return  # terminated
            for _ in range(times):
                self._write(task, payload, published, stored)

    def _write(
        self, task: FakeTask, payload: bytes, published: bool = True, stored: bool = True
    ) -> None:
        key = RESULT + task.task_id.encode()
        with self.world.lock:
            if stored:
                self.world.store.set(key, payload, self._expires)
            if published:
                self.world.publish(key, payload)


def _echo(request: TaskRequest) -> TaskResult:
    return TaskResult(list(request.artifacts), dict(request.options))
