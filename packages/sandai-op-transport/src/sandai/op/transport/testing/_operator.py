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
    TaskCancelledError,
    TaskRequest,
    TaskResult,
    queue_name,
)

from ._messages import FakeTask, decode
from ._replies import Reply
from ._results import Results
from ._revocations import Revocations
from ._store import WrongType
from ._world import world

logger = logging.getLogger("sandai.op.transport")

Handler = Callable[[TaskRequest], object]

_GRACE = 5.0
_PLAIN = Reply()
_numbers = itertools.count(1)


class FakeOperator:
    """
    Serve one operator's queues on ``memory://``, from threads, until it is closed.

    *handler* gets a :class:`TaskRequest` and returns a ``TaskResult``, ``None``, a
    :class:`Reply`, or a raw envelope. A ``sandai.op.models`` error that it raises becomes
    an error envelope; any other exception fails the Celery task. Without a handler the
    answer is the task's own artifacts, and its options as results.

    Descriptions, probes, late and cancelled tasks are answered without the handler.
    *concurrency* tasks run at once; results expire after *result_expires* seconds. The last
    *remember* tasks are kept for :attr:`tasks`. Raises ``ValueError`` for a concurrency
    below 1, and :class:`ConfigurationError` for a *url* that is no ``memory://``.
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
        remember: int = 1000,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency}: at least 1 task must run at a time")
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
        #: How many tasks came altogether.
        self.received = 0
        self._handler = handler or _echo
        self.concurrency = concurrency
        self._track_started = track_started
        self._results = Results(self.world, result_serializer, result_expires)
        self._accept = tuple(accept_content)
        self._tasks: deque[FakeTask] = deque(maxlen=remember)
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

    @property
    def tasks(self) -> list[FakeTask]:
        """The last tasks that came, of every kind, oldest first."""
        with self.world.lock:
            return list(self._tasks)

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
            return list(self._tasks)

    def store(
        self, task_id: str, state: str, result: object = None, *, publish: bool = True
    ) -> None:
        """Store a state or a result of a task, from a handler or from outside."""
        task = FakeTask(task_id, "", {})
        payload = self._results.payload(task, result, state)
        self._results.write(task, payload, published=publish)

    def start(self) -> Self:
        """
        Begin to take tasks; entering the ``with`` block does it.

        Raises ``RuntimeError`` once it is closed.
        """
        if self._closing.is_set():
            raise RuntimeError(f"{self!r} is closed: make another one")
        if self._threads:
            return self
        with self.world.lock:
            self.world.operators.append(self)
        for number in range(self.concurrency):
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
                self._results.write(task, self._results.revoked(task, "revoked"))
            for task_id in revoking if terminate else ():
                if (running := self._running.pop(task_id, None)) is not None:
                    self._results.write(running, self._results.revoked(running, "terminated"))

    def revoked(self) -> list[str]:
        """Return the ids of the tasks that were revoked."""
        with self.world.lock:
            return self._revocations.ids()

    def running(self) -> list[FakeTask]:
        """Return the tasks that are being worked on."""
        with self.world.lock:
            return list(self._running.values())

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
            self._tasks.append(task)
            self.received += 1
            self._running[task.task_id] = task
            self._seen.notify_all()
            skipped = self._revocations.covers(task)
        if skipped:
            self._finish(task, self._results.revoked(task, "revoked"))
            return
        if self._track_started:
            meta = {"pid": self._pid, "hostname": self.hostname}
            self._results.write(task, self._results.payload(task, meta, "STARTED"))
        try:
            answer = self.answer(task)
            reply = answer if isinstance(answer, Reply) else Reply(answer)
            # An infinite delay is more than a lock can wait for.
            if reply.delay and self._closing.wait(min(reply.delay, threading.TIMEOUT_MAX)):
                reply = Reply.lost()  # as with a worker that is stopped meanwhile
        except BaseException as error:  # pytest.fail(), too: the caller hears of it
            self._finish(task, self._results.payload(task, error))
            return
        self._finish(task, self._results.payload(task, reply.value, reply.state), reply)

    def _finish(self, task: FakeTask, payload: bytes, reply: Reply = _PLAIN) -> None:
        with self.world.lock:
            if self._running.pop(task.task_id, None) is None:
                return  # terminated
            for _ in range(reply.times):
                self._results.write(task, payload, stored=reply.stored, published=reply.published)


def _echo(request: TaskRequest) -> TaskResult:
    return TaskResult(list(request.artifacts), dict(request.options))
