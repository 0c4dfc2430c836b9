"""When to try for a push connection, and what to say of it."""

import logging

from ._errors import TransportError
from ._push import PushRefused
from ._sweeping import SHORTEST

_LONGEST_PAUSE = 1.0
#: Trying takes at most one part in this many of the reader's time: it also sweeps.
_SHARE = 10


class PushAttempts:
    """
    Keep account of the attempts to open a push connection, and log their outcome.

    Times are of ``time.monotonic()``, in seconds.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._retry_at = 0.0
        self._failures = 0
        self._told = False
        self._given_up = False
        #: How many succeeded.
        self.opened = 0

    def due(self, now: float) -> bool:
        """Return whether to try."""
        return not self._given_up and now >= self._retry_at

    def no_permit(self, now: float) -> None:
        """Note that the loops and threads of this process hold every permit."""
        self._retry_at = now + _LONGEST_PAUSE

    def succeeded(self) -> None:
        """Note a connection that is open and subscribed."""
        self.opened += 1
        if self._told:
            self._logger.warning("push of results: well again")
        self._failures, self._told = 0, False

    def failed(self, error: TransportError | PushRefused, took: float, now: float) -> None:
        """Note an attempt that took *took* seconds and failed; refused for good, it is the last."""
        if isinstance(error, PushRefused):
            refusal = error
        else:
            refusal = PushRefused(str(error))
        if refusal.for_good:
            self._given_up = True
            self._logger.warning(
                "the result backend does not allow push, polling instead: %s", error
            )
            return
        self._failures += 1
        pause = min(_LONGEST_PAUSE, SHORTEST * 2 ** min(self._failures - 1, 10))
        self._retry_at = now + max(pause, took * _SHARE)
        if self._failures > 1 and not self._told:
            # Reading has worked since: it is push alone that fails.
            self._told = True
            self._logger.warning("push of results: %s; polling meanwhile, trying on", error)

    def lost(self, now: float) -> None:
        """Note that a connection that was up is not any more."""
        self._retry_at = now + SHORTEST
