"""One last look at tasks that were waited for in vain, shared by who asks at a time."""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from sandai.op.models import OperatorError
from sandai.op.transport import (
    LOOK_SECONDS,
    MOST_LOOKED_AT,
    Config,
    Evidence,
    RedisBackend,
    Transport,
)

#: Seconds that one step may take, of connecting, of asking, or of waiting for a permit.
_STEP = LOOK_SECONDS / 3


class Explainer:
    """
    Look at queues and documents for threads whose waits ran out; never raises for a server.

    Who asks while a look is under way goes along with the next, so that a thousand
    threads whose time is over at once cost a few round trips.
    """

    def __init__(self, config: Config, transport: Transport) -> None:
        self._queues = tuple(config.queue_names.values())
        self._transport = transport
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._latest: _Look | None = None
        # Last: another thread of the child must not see the parent's lock.
        self._process = os.getpid()

    def look(self, task_ids: Sequence[str]) -> Evidence:
        """Return what is to be seen within :data:`LOOK_SECONDS`; perhaps nothing."""
        deadline = time.monotonic() + LOOK_SECONDS
        if self._process != os.getpid():
            self._reset()  # a forked child: whoever looked stayed behind
        with self._lock:
            ahead = self._latest
            # One whose thread was interrupted before it began is over some time, too.
            if ahead is not None and not ahead.begun and time.monotonic() < ahead.deadline:
                ahead.task_ids += task_ids
                own = None
            else:
                own = self._latest = _Look(list(task_ids), Evidence(self._queues), deadline)
        if own is None:
            assert ahead is not None
            ahead.over.wait(max(0.0, deadline - time.monotonic()))
            return ahead.evidence
        try:
            if ahead is not None:
                ahead.over.wait(max(0.0, deadline - time.monotonic()))
            with self._lock:
                own.begun = True
            self._gather(own)
        finally:
            with self._lock:
                own.begun = True
                if self._latest is own:
                    self._latest = None
            own.over.set()
        return own.evidence

    def _gather(self, look: "_Look") -> None:
        deadline = look.deadline
        broker, backend = self._transport.broker, self._transport.backend
        if broker.punctual and (step := _step(deadline)):
            with suppress(OperatorError):
                depths = broker.depths(self._queues, acquire_timeout=step, timeout=step)
                look.evidence.note_depths(depths)
        # Others are asked again and again by who waits, and some of them take their time.
        if isinstance(backend, RedisBackend) and (step := _step(deadline)):
            with suppress(OperatorError):
                asked = look.task_ids[:MOST_LOOKED_AT]
                documents = backend.look(asked, acquire_timeout=step, timeout=step)
                look.evidence.note_documents(documents)


class _Look:
    def __init__(self, task_ids: list[str], evidence: Evidence, deadline: float) -> None:
        self.task_ids = task_ids
        self.evidence = evidence
        self.deadline = deadline
        self.begun = False
        self.over = threading.Event()


def _step(deadline: float) -> float:
    return max(0.0, min(_STEP, deadline - time.monotonic()))
