"""A server that cannot be reached for a while: when to try again, what to log."""

import logging

from sandai.op.models import OperatorError

from ._errors import TransportError

_SHORTEST_BACKOFF, _LONGEST_BACKOFF = 0.05, 1.0
#: What fails, works and fails again is told of once, until it is well for these seconds.
_QUIET = 10.0


class Outage:
    """
    Keep account of failures of one thing; log their beginning and their end.

    One that comes soon after another is logged if it lasts, and one that turns out to
    be a refusal once more. Times are of ``time.monotonic()``.
    """

    def __init__(self, what: str, logger: logging.Logger) -> None:
        self._what = what
        self._logger = logger
        self._backoff = 0.0
        self._retry_at = 0.0
        self._since = 0.0
        self._quiet_until = 0.0
        self._told = False
        self._refused = False
        #: The latest failure; ``None`` while all is well.
        self.error: OperatorError | None = None

    def failed(self, error: OperatorError, now: float) -> None:
        """Note a failure; the next try is due after a backoff that grows to a second."""
        refused = isinstance(error, TransportError) and error.refused
        # A server that is back and wants another password will hardly come round by itself.
        turned = self.error is not None and refused and not self._refused
        if self.error is None:
            self._since = now
        lasts = now - self._since >= _LONGEST_BACKOFF
        if turned or (not self._told and (lasts or now >= self._quiet_until)):
            self._told = True
            # Its text: a handler that keeps records would keep what the traceback holds.
            self._logger.warning("%s: %s; trying on", self._what, str(error))
        self._quiet_until = now + _QUIET
        self.error, self._refused = error, self._refused or refused
        self._backoff = min(_LONGEST_BACKOFF, max(_SHORTEST_BACKOFF, self._backoff * 2))
        self._retry_at = now + self._backoff

    def worked(self) -> None:
        """Note a success."""
        if self._told:
            self._told = False
            self._logger.warning("%s: well again", self._what)
        self.error, self._backoff, self._retry_at = None, 0.0, 0.0
        self._refused = False

    def try_now(self, now: float) -> bool:
        """Return whether it is time to try."""
        return now >= self._retry_at
