"""Whether to try push now: what a failure, a refusal or a lack of permits means."""

import logging

from ._errors import TransportError
from ._outage import Outage
from ._push import PushRefused
from ._sweeping import SHORTEST

_LONGEST_PAUSE = 1.0
#: Trying takes at most one part in this many of the reader's time: it also sweeps.
_SHARE = 10


class PushPolicy:
    """
    Decide when a reader opens its push connection, and tell of its failures once.

    *reading* is the outage of looking: a server that is down is told of there,
    and not tried here. Times are of ``time.monotonic()``.
    """

    def __init__(self, reading: Outage, logger: logging.Logger, *, possible: bool) -> None:
        self._reading = reading
        self._logger = logger
        self._retry_at = 0.0
        self._failures = 0
        self._told = False
        #: Whether push is to be had at all: not of every backend, nor of every server.
        self.possible = possible
        #: How many connections have been opened.
        self.opens = 0
        #: Why there is no connection; ``None`` while there is one, or none is wanted.
        self.problem: str | None = None

    def due(self, now: float) -> bool:
        """Return whether to try to open a connection now."""
        return self.possible and now >= self._retry_at and self._reading.error is None

    def no_permit(self, now: float) -> None:
        """Note that others hold the permits; they may give one back some time."""
        self._retry_at = now + _LONGEST_PAUSE
        self.problem = "no permit for a push connection is free"

    def opened(self) -> None:
        """Note that a connection is up and everything is subscribed to."""
        self.opens += 1
        if self._told:
            self._logger.warning("push of results: well again")
        self._failures, self._told, self.problem = 0, False, None

    def lost(self, error: TransportError | PushRefused, now: float) -> None:
        """Note that a connection broke, or was closed because the server refused something."""
        self._retry_at = now + SHORTEST
        self.problem = str(error)
        if isinstance(error, PushRefused):
            self.failed(error, now, took=0.0)

    def failed(self, error: TransportError | PushRefused, now: float, *, took: float) -> None:
        """Note that opening failed after *took* seconds."""
        self.problem = str(error)
        refusal = error if isinstance(error, PushRefused) else PushRefused(str(error))
        if refusal.for_good:
            self.possible = False
            self._logger.warning(
                "the result backend does not allow push, polling instead: %s", str(error)
            )
            return
        self._failures += 1
        pause = min(_LONGEST_PAUSE, SHORTEST * 2 ** min(self._failures - 1, 10))
        self._retry_at = now + max(pause, took * _SHARE)
        if self._failures > 1 and not self._told:
            # Reading has worked since: it is push alone that fails.
            self._told = True
            self._logger.warning("push of results: %s; polling meanwhile, trying on", str(error))
