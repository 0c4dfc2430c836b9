"""
Each step of a client's tasks, said at level DEBUG where ``debug=True`` asks for it.

Records carry their facts as attributes (``extra``), for handlers that write JSON. None holds
an option's value, an artifact's URI or a password.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from sandai.op.models import TaskTimeoutError

from ._broker import Outcome
from ._config import Config
from ._documents import ResultDocument
from ._errors import TransportError
from ._message import TaskMessage

#: Tasks whose queue is remembered, for the records of what comes after.
_REMEMBERED = 10_000


def steps_of(config: Config, logger: logging.Logger) -> "Steps | None":
    """Return what says the steps, ``None`` where nobody asked for it."""
    return Steps(config, logger) if config.debug else None


class Steps:
    """
    Say the steps of one client's tasks.

    Every record has ``task_id`` and ``queue``, ``None`` where there is none or it is not
    known, ``operator_name`` and ``operator_version``.
    """

    def __init__(self, config: Config, logger: logging.Logger) -> None:
        self._logger = logger
        self._about = {
            "operator_name": config.operator_name,
            "operator_version": config.operator_version,
        }
        # Task id -> its queue, and the time.monotonic() when it was handed in. Setting, and
        # taking out what is there, are atomic; threads do both.
        self._known: dict[str, tuple[str, float]] = {}

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def configured(self, config: Config) -> None:
        """Say with what settings a client was made."""
        self._say("configured: %s", config)

    def handing_in(self, messages: Sequence[TaskMessage]) -> None:
        """Note when messages are handed in, and where they are to go."""
        if not self.wanted:
            return
        now = time.monotonic()
        for message in messages:
            self._known[message.task_id] = (message.queue, now)
            if len(self._known) > _REMEMBERED:
                with suppress(StopIteration, RuntimeError):  # another thread was faster
                    self._known.pop(next(iter(self._known)), None)

    def queued(self, messages: Sequence[TaskMessage], outcomes: Sequence[Outcome]) -> None:
        """Say what became of messages, and how long that took."""
        if not self.wanted:
            return
        now = time.monotonic()
        for message, outcome in zip(messages, outcomes, strict=True):
            took = now - self._known.get(message.task_id, ("", now))[1]
            if outcome is None:
                how, why = "queued", ""
            elif isinstance(outcome, TransportError) and outcome.maybe_done:
                how, why = "perhaps queued", f": {outcome}"
            else:
                how, why = "not queued", f": {outcome}"
            said = (message.task_id, how, message.queue, took * 1000, why)
            self._say("task %s %s in %s in %.1f ms%s", *said, task_id=message.task_id, seconds=took)

    def watching(self, task_ids: Sequence[str], limit: float | None) -> None:
        """Say that results are waited for, *limit* seconds (``None``: for good)."""
        if self.wanted:
            until = "for as long as it takes" if limit is None else f"for {limit:g} s"
            for task_id in task_ids:
                self._say("task %s: waiting for its result %s", task_id, until, task_id=task_id)

    def arrived(self, document: ResultDocument, *, deleted: bool = False) -> None:
        """Say that a result is there, how it came, and whether it is deleted with that."""
        about = {"task_id": document.task_id, "state": document.state, "how": document.how}
        self._say("task %s: %s, %s", document.task_id, document.state, document.how, **about)
        if deleted:
            self.deleted([document.task_id])

    def looked(self, documents: Sequence[ResultDocument]) -> None:
        """Say what a single look found."""
        for document in documents:
            self.arrived(document)

    def deleted(self, task_ids: Sequence[str]) -> None:
        """Say that results are deleted."""
        if self.wanted:
            for task_id in task_ids:
                self._say("task %s: its result is deleted", task_id, task_id=task_id)

    def timed_out(self, error: TaskTimeoutError) -> None:
        """Say that a wait ran out, and what is known of the task."""
        said = (error.task_id, error.timeout, error.state)
        about = {"task_id": error.task_id, "state": error.state}
        if error.queue is not None:
            about["queue"] = error.queue
        self._say("task %s: no result within %s s; %s", *said, **about)

    def revoked(self, task_ids: Iterable[str], *, terminate: bool = False) -> None:
        """Say that the operator's workers were told not to run tasks, or to end them."""
        if self.wanted:
            how = "revoked, and ended where it runs" if terminate else "revoked"
            for task_id in task_ids:
                self._say("task %s: %s", task_id, how, task_id=task_id)

    def unreachable(self, what: str, error: Exception) -> None:
        """Say that a question to broker or operator failed."""
        self._say("%s failed: %s", what, str(error))

    def _say(self, text: str, *values: object, task_id: str | None = None, **more: object) -> None:
        if self.wanted:
            known = self._known.get(task_id) if task_id is not None else None
            queue = None if known is None else known[0]
            about = {"task_id": task_id, "queue": queue, **self._about, **more}
            self._logger.debug(text, *values, extra=about, stacklevel=3)
