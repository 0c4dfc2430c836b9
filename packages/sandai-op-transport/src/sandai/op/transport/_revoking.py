"""
Revoking tasks, as Celery does it: a broadcast to the workers.

At once for who asks; for who has given up and goes on, in a thread of its own.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from copy import copy
from queue import SimpleQueue
from signal import Signals

from attrs import evolve, frozen
from celery import Celery

from sandai.op.models import ConfigurationError, protocol

from ._steps import Steps

#: Ids in one broadcast; a worker remembers some ten thousand.
_MOST = 10_000
#: Seconds in which those who give up at the same time come together.
_GATHER = 0.01


@frozen
class _Job:
    """What somebody waits for, or has given up (``told`` is ``None``)."""

    task_ids: list[str]
    terminate: bool = False
    signal: str = "SIGTERM"
    told: "Future[None] | None" = None


class Revoker:
    """
    One client's revocations.

    *app* gives the Celery app that sends them, under one permit of the broker's. With
    *given_up* whatever is handed to :meth:`give_up` is revoked too, best effort.
    """

    def __init__(
        self,
        app: Callable[[], Celery],
        *,
        given_up: bool,
        logger: logging.Logger,
        steps: Steps | None = None,
    ) -> None:
        self._app = app
        self._steps = steps
        self._given_up = given_up
        self._logger = logger
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: How many jobs have been announced, and are not done.
        self._held = 0
        # A SimpleQueue may be put to in a finalizer.
        self._jobs: SimpleQueue[_Job | Future[None]] = SimpleQueue()
        # Last: another thread of a forked child must not see the parent's lock.
        self._process = os.getpid()

    def revoke(
        self, task_ids: Iterable[object], *, terminate: bool = False, signal: str = "SIGTERM"
    ) -> None:
        """
        Revoke tasks, many in one broadcast; blocks.

        With *terminate* those that run are sent a *signal*, where the worker has
        processes. Raises :class:`InvalidTaskError` for what is no task's id,
        :class:`ConfigurationError` for what is no signal's name,
        :class:`ClientPoolTimeoutError` and :class:`OperatorConnectionError`.
        """
        self._broadcast(_job(task_ids, terminate, signal))

    def post(
        self, task_ids: Iterable[object], *, terminate: bool = False, signal: str = "SIGTERM"
    ) -> "Future[None] | None":
        """
        Have tasks revoked in a thread; return what is done then, or fails as :meth:`revoke`.

        Those who come together share a broadcast. ``None`` once the client is closed.
        """
        job = _job(task_ids, terminate, signal, Future())
        return job.told if self._announce(job) else None

    # Of those who gave up.

    def give_up(self, task_ids: Iterable[str]) -> None:
        """Have tasks revoked soon, if the client is set so; never raises for the broker."""
        if self._given_up and (ids := list(task_ids)) and self.hold():
            self.let_go(ids)

    def hold(self) -> bool:
        """Begin what ends with :meth:`let_go`; ``False`` when there will be no revoking."""
        try:
            return self._given_up and self._announce()
        except RuntimeError as error:  # no thread to be had, or the program ends
            self._logger.warning("tasks given up are not revoked: %s", error)
            return False

    def let_go(self, task_ids: list[str], process: int | None = None) -> None:
        """
        End what :meth:`hold` began, and have tasks revoked; no lock, no I/O.

        *process* is that of :meth:`hold`, where this may be its forked child: the tasks are
        the parent's, and so is what was begun.
        """
        if process is not None and process != os.getpid():
            return
        self._jobs.put(_Job(task_ids))

    # The end.

    def drain(self) -> "Future[None] | None":
        """End the thread; return what is done once all that was to be revoked is."""
        if self._process != os.getpid():
            return None
        with self._lock:
            self._closed = True
            if self._thread is None:
                return None
            drained: Future[None] = Future()
            self._jobs.put(drained)
            return drained

    def abandon(self) -> None:
        """End the thread soon; for finalizers."""
        self._closed = True
        self._jobs.put(Future())

    def _announce(self, job: _Job | None = None) -> bool:
        if self._process != os.getpid():
            # A forked child: the thread, and whoever held the lock, stayed behind.
            self._reset()
        with self._lock:
            if self._closed:
                return False
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="sandai-op-revoke", daemon=True)
                thread.start()
                self._thread = thread
            self._held += 1
            if job is not None:
                # Under the lock: whoever closes in another thread does so before or after that,
                # and nobody waits for what comes after the end.
                self._jobs.put(job)
            return True

    # The thread.

    def _run(self) -> None:
        while True:
            jobs, end = self._next()
            for job in _together(jobs):
                self._try(job)
            with self._lock:
                self._held -= len(jobs)
                if self._held and end is None:
                    continue
                self._thread = None
            if end is not None and end.set_running_or_notify_cancel():
                end.set_result(None)
            return

    def _next(self) -> "tuple[list[_Job], Future[None] | None]":
        """Wait for a job; return all that there are, and whether this is the end."""
        jobs: list[_Job] = []
        item = self._jobs.get()
        if isinstance(item, _Job):
            time.sleep(_GATHER)
        while isinstance(item, _Job):
            jobs.append(item)
            if self._jobs.empty():
                return jobs, None
            item = self._jobs.get()
        return jobs, item

    def _try(self, jobs: list[_Job]) -> None:
        task_ids = list(dict.fromkeys(task_id for job in jobs for task_id in job.task_ids))
        error = None
        try:
            self._broadcast(evolve(jobs[0], task_ids=task_ids))
        except Exception as failed:
            error = failed
        given_up = 0
        for job in jobs:
            if job.told is None:
                given_up += len(job.task_ids)
            elif error is None:
                job.told.set_result(None)
            else:
                job.told.set_exception(copy(error))
        if error is not None and given_up:
            self._logger.warning("revoking %d tasks given up: %s", given_up, str(error))

    def _broadcast(self, job: _Job) -> None:
        for start in range(0, len(job.task_ids), _MOST):
            task_ids = job.task_ids[start : start + _MOST]
            self._app().control.revoke(task_ids, terminate=job.terminate, signal=job.signal)
            if self._steps is not None:
                self._steps.revoked(task_ids, terminate=job.terminate)


def check_signal(signal: object) -> None:
    """Raise :class:`ConfigurationError` unless it is the name of a signal."""
    if signal not in list(Signals.__members__):
        raise ConfigurationError("signal", signal, "must be a signal's name, like 'SIGTERM'")


def _job(
    task_ids: Iterable[object],
    terminate: bool,
    signal: str,
    told: "Future[None] | None" = None,
) -> _Job:
    check_signal(signal)
    ids = list(dict.fromkeys(protocol.check_task_id(task_id) for task_id in task_ids))
    return _Job(ids, bool(terminate), signal, told)


def _together(jobs: Iterable[_Job]) -> Iterable[list[_Job]]:
    """Return jobs by what is to be done; without those that nobody waits for any more."""
    alike: dict[tuple[bool, str], list[_Job]] = {}
    for job in jobs:
        if job.told is None or job.told.set_running_or_notify_cancel():
            alike.setdefault((job.terminate, job.signal), []).append(job)
    return alike.values()
