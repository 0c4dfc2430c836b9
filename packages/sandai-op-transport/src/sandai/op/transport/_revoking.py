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
from queue import SimpleQueue
from signal import Signals

from celery import Celery

from sandai.op.models import ConfigurationError, protocol

#: Ids in one broadcast; a worker remembers some ten thousand.
_MOST = 10_000
#: Seconds in which those who give up at the same time come together.
_GATHER = 0.01


class Revoker:
    """
    One client's revocations.

    *app* gives the Celery app that sends them, under one permit of the broker's. With
    *given_up* whatever is handed to :meth:`give_up` is revoked too, best effort.
    """

    def __init__(
        self, app: Callable[[], Celery], *, given_up: bool, logger: logging.Logger
    ) -> None:
        self._app = app
        self._enabled = given_up
        self._logger = logger
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: How many may yet give up, or have and are not seen to.
        self._held = 0
        # A SimpleQueue may be put to in a finalizer.
        self._given_up: SimpleQueue[list[str] | Future[None]] = SimpleQueue()

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
        if signal not in list(Signals.__members__):
            raise ConfigurationError("signal", signal, "must be a signal's name, like 'SIGTERM'")
        ids = list(dict.fromkeys(protocol.check_task_id(task_id) for task_id in task_ids))
        for start in range(0, len(ids), _MOST):
            self._app().control.revoke(
                ids[start : start + _MOST], terminate=bool(terminate), signal=signal
            )

    # Of those who gave up.

    def give_up(self, task_ids: Iterable[str]) -> None:
        """Have tasks revoked soon, if the client is set so; never raises for the broker."""
        if self._enabled and (ids := list(task_ids)) and self.hold():
            self.let_go(ids)

    def hold(self) -> bool:
        """Begin what ends with :meth:`let_go`; ``False`` when there will be no revoking."""
        if not self._enabled:
            return False
        if self._process != os.getpid():
            # A forked child: the thread, and whoever held the lock, stayed behind.
            self._reset()
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="sandai-op-revoke", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread to be had, or the program ends
                    self._logger.warning("tasks given up are not revoked: %s", error)
                    return False
                self._thread = thread
            self._held += 1
        return True

    def let_go(self, task_ids: list[str]) -> None:
        """End what :meth:`hold` began, and have tasks revoked; no lock, no I/O."""
        self._given_up.put(task_ids)

    def drain(self) -> "Future[None] | None":
        """End the thread; return what is done once all that was given up is revoked."""
        if self._process != os.getpid():
            return None
        with self._lock:
            self._enabled = False
            if self._thread is None:
                return None
            drained: Future[None] = Future()
            self._given_up.put(drained)
            return drained

    def abandon(self) -> None:
        """End the thread soon; for finalizers."""
        self._enabled = False
        self._given_up.put(Future())

    def _run(self) -> None:
        while True:
            gone, ended = self._next()
            if gone:
                self._try(gone)
            if ended is not None:
                with self._lock:
                    self._thread = None
                if ended.set_running_or_notify_cancel():
                    ended.set_result(None)
                return
            with self._lock:
                if not self._held:
                    self._thread = None
                    return

    def _next(self) -> "tuple[list[str], Future[None] | None]":
        """Wait for somebody to give up; return all that have, and whether this is the end."""
        gone: list[str] = []
        first, count = self._given_up.get(), 0
        if not isinstance(first, Future):
            time.sleep(_GATHER)
        while not isinstance(first, Future):
            gone += first
            count += 1
            if self._given_up.empty():
                break
            first = self._given_up.get()
        with self._lock:
            self._held -= count
        return gone, first if isinstance(first, Future) else None

    def _try(self, task_ids: list[str]) -> None:
        try:
            self.revoke(task_ids)
        except Exception as error:
            self._logger.warning("revoking %d tasks given up: %s", len(task_ids), str(error))
