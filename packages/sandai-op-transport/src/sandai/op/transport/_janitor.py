"""
The janitor: one small thread that closes idle connections and ends with them.

It also drains the leases of clients that were garbage-collected unclosed:
their finalizers may neither lock nor do I/O, so they only leave a note. And it
releases those of clients that close on an event loop, which may not block.
"""

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol
from weakref import WeakSet

_INTERVAL = 0.5

logger = logging.getLogger("sandai.op.transport")


class Tended(Protocol):
    """Something with connections that grow idle."""

    def tend(self, now: float) -> bool: ...


_lock = threading.Lock()
_tended: "WeakSet[Tended]" = WeakSet()
_thread: threading.Thread | None = None
_abandoned: "SimpleQueue[Callable[[], None]]" = SimpleQueue()
_woken = threading.Event()


def watch(pool: Tended) -> None:
    """Tend *pool* until it says that nothing is idle any more."""
    # Always under the lock: the janitor may be about to let go of this pool,
    # having seen it without the connection that became idle just now.
    with _lock:
        _tended.add(pool)
        _running()  # else, as the interpreter leaves, next time


def abandon(release: Callable[[], None]) -> None:
    """Have *release* called soon, outside any finalizer. Takes no lock, does no I/O."""
    _abandoned.put(release)


def release_now(release: Callable[[], None]) -> None:
    """Have *release* called at once in the janitor's thread; for who may not block."""
    _abandoned.put(release)
    with _lock:
        running = _running()
    if running:
        _woken.set()
    else:
        drain()


def drain() -> None:
    """Call what finalizers left; the janitor and the registry do."""
    while True:
        try:
            release = _abandoned.get_nowait()
        except Empty:
            return
        try:
            release()
        except Exception as error:
            # Somebody else's lease: neither the janitor nor a new client fails for it.
            logger.warning("closing an abandoned client failed: %s", type(error).__name__)


def reset_after_fork() -> None:
    """Forget the parent's thread and locks."""
    global _lock, _thread, _abandoned, _tended, _woken
    _lock, _thread, _abandoned, _tended = threading.Lock(), None, SimpleQueue(), WeakSet()
    _woken = threading.Event()


def _running() -> bool:
    """Start the thread if there is none; under the lock. Return whether there is one."""
    global _thread
    if _thread is None:
        thread = threading.Thread(target=_run, name="sandai-op-janitor", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False  # the interpreter is leaving
        _thread = thread
    return True


def _run() -> None:
    global _thread
    while True:
        _woken.wait(_INTERVAL)
        _woken.clear()
        drain()
        now = time.monotonic()
        with _lock:
            pools = list(_tended)
        idle = {pool for pool in pools if pool.tend(now)}
        with _lock:
            for pool in pools:
                if pool not in idle and not pool.tend(now):
                    _tended.discard(pool)
            if not _tended and _abandoned.empty():
                _thread = None
                return
