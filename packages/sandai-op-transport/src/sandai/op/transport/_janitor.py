"""
The janitor: one small thread that closes idle connections and ends with them.

It also drains the leases of clients that were garbage-collected unclosed:
their finalizers may neither lock nor do I/O, so they only leave a note.
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


def watch(pool: Tended) -> None:
    """Tend *pool* until it says that nothing is idle any more."""
    global _thread
    # Always under the lock: the janitor may be about to let go of this pool,
    # having seen it without the connection that became idle just now.
    with _lock:
        _tended.add(pool)
        if _thread is None:
            thread = threading.Thread(target=_run, name="sandai-op-janitor", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No thread to be had (the interpreter is leaving): next time.
                return
            _thread = thread


def abandon(release: Callable[[], None]) -> None:
    """Have *release* called soon, outside any finalizer. Takes no lock, does no I/O."""
    _abandoned.put(release)


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
    global _lock, _thread, _abandoned, _tended
    _lock, _thread, _abandoned, _tended = threading.Lock(), None, SimpleQueue(), WeakSet()


def _run() -> None:
    global _thread
    while True:
        time.sleep(_INTERVAL)
        drain()
        now = time.monotonic()
        with _lock:
            pools = list(_tended)
        idle = {pool for pool in pools if pool.tend(now)}
        with _lock:
            for pool in pools:
                if pool not in idle and not pool.tend(now):
                    _tended.discard(pool)
            if not _tended:
                _thread = None
                return
