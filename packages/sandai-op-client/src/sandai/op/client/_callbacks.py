"""Functions that are called with a result: what ``then()`` of a handle makes."""

import logging
import weakref
from collections.abc import Callable

from sandai.op.transport import ResultDocument

from ._hub import ResultHub

logger = logging.getLogger("sandai.op.client")


class Callback:
    """A waiter that calls a function, and leaves *callbacks* then."""

    def __init__(
        self,
        hub: ResultHub,
        task_id: str,
        function: Callable[[ResultDocument], None],
        callbacks: "set[Callback]",
    ) -> None:
        self.hub = hub
        self.task_id = task_id
        self._function = function
        self._callbacks = callbacks
        self.keeper: object = None

    def deliver(self, document: ResultDocument) -> None:
        """Call the function, in the hub's thread."""
        self._callbacks.discard(self)
        try:
            self._function(document)
        except BaseException:
            # Even SystemExit: the thread is the hub's, the others wait on it.
            about = {"task_id": self.task_id}
            logger.exception("a callback for task %s failed", self.task_id, extra=about)


class Callbacks:
    """One client's callbacks that have not been called yet."""

    def __init__(self) -> None:
        # No lock: adding, discarding and copying are atomic.
        self._outstanding: set[Callback] = set()

    def __len__(self) -> int:
        return len(self._outstanding)

    def add(
        self,
        hub: ResultHub,
        task_id: str,
        function: Callable[[ResultDocument], None],
        keeper: object | None,
    ) -> Callback:
        """Keep a callback; with a *keeper* only as long as that object, held weakly, lives."""
        callback = Callback(hub, task_id, function, self._outstanding)
        self._outstanding.add(callback)
        if keeper is not None:

            def gone(_: object) -> None:
                # In a finalizer: no lock, no I/O.
                self._outstanding.discard(callback)
                hub.unwatch_later([task_id], callback)

            callback.keeper = weakref.ref(keeper, gone)
        return callback

    def drop(self, callback: Callback) -> None:
        """Have it not called any more."""
        self._outstanding.discard(callback)
        callback.hub.unwatch([callback.task_id], callback)

    def drop_all(self) -> None:
        """Have none called any more."""
        for callback in list(self._outstanding):
            self.drop(callback)
