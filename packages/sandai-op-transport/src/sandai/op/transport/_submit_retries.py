"""Submitting again: which messages, when, and what is known of each in the end."""

import random
from collections.abc import Sequence

from attrs import evolve

from sandai.op.models import ClientPoolTimeoutError

from ._broker import Broker, Outcome
from ._errors import TransportError
from ._message import TaskMessage

#: Seconds before the second attempt, and at most before a later one.
_FIRST, _LONGEST = 0.05, 1.0


class Attempts:
    """
    Keep account of messages that are sent up to ``retries`` times again.

    Whoever does the I/O sends :attr:`messages`, reports to :meth:`settle`, waits for as
    long as that says, and begins anew; until it says ``None``.

    What certainly was not queued is sent again, and where the broker takes every message
    at most once, so is what may have been.
    """

    def __init__(self, broker: Broker, messages: Sequence[TaskMessage], retries: int) -> None:
        self._broker = broker
        self._left = retries
        self._pause = _FIRST
        self._in_doubt: set[int] = set()
        self._positions: Sequence[int] = range(len(messages))
        #: What is to be sent now.
        self.messages = messages
        #: What has become of each message so far.
        self.outcomes: list[Outcome] = [None] * len(messages)

    def settle(self, outcomes: Sequence[Outcome]) -> float | None:
        """Note what became of :attr:`messages`; return seconds until the rest is to be sent."""
        again: list[tuple[int, TaskMessage]] = []
        for position, message, outcome in zip(
            self._positions, self.messages, outcomes, strict=True
        ):
            if isinstance(outcome, TransportError):
                if outcome.maybe_done:
                    self._in_doubt.add(position)
                if self._broker.takes_once or not outcome.maybe_done:
                    again.append((position, message))
            self.outcomes[position] = self._said(position, outcome)
        if not again or not self._left:
            return None
        self._left -= 1
        self._positions = [position for position, _ in again]
        self.messages = [evolve(message, attempt=message.attempt + 1) for _, message in again]
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST)
        return pause * random.uniform(0.75, 1.25)  # so that not everybody comes at once

    def _said(self, position: int, outcome: Outcome) -> Outcome:
        if position not in self._in_doubt or not isinstance(
            outcome, TransportError | ClientPoolTimeoutError
        ):
            return outcome
        if isinstance(outcome, TransportError) and outcome.maybe_done:
            return outcome
        # An earlier attempt may have queued it, whatever is known of the last.
        doubt = TransportError(str(outcome), True)
        doubt.__cause__ = outcome
        return doubt
