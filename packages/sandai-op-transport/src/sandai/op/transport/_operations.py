"""The calls of an observed client: each a span, and how long it took."""

from collections.abc import Iterable, Mapping
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sandai.op.models import InvalidTaskError, OperatorError, redact

from ._errors import TransportError

if TYPE_CHECKING:
    from ._telemetry import Telemetry


class Operation:
    """
    One call: a span, current while the ``with`` block runs, and how long it took.

    Ends once, with the block or before.
    """

    producer = False

    def __init__(
        self,
        telemetry: "Telemetry",
        attributes: dict[str, Any],
        *,
        count: int | None = None,
        links: Iterable[object] = (),
    ) -> None:
        self.telemetry = telemetry
        #: Those of the metrics: few values each, no ids.
        self.attributes = attributes
        self._began = perf_counter()
        self._ended = False
        self._left: object = None
        tracing = telemetry.tracing
        self.span = None
        if tracing is not None:
            counted = {} if count is None else {"messaging.batch.message_count": count}
            self.span = tracing.start(attributes | counted, producer=self.producer, links=links)

    def __enter__(self) -> Self:
        if self.span is not None:
            self._left = self.span.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is GeneratorExit:
            # A coroutine that is collected, in whatever thread, inside whatever lock, perhaps
            # an exporter's: its span is given up.
            self._ended = True
            return
        if self.span is not None:
            self.span.leave(self._left)
        self.end(error)

    @property
    def link(self) -> object:
        """What another span is linked to this one by; ``None`` without a span."""
        return None if self.span is None else self.span.link

    def note(self, name: str, value: str | int | bool) -> None:
        """Set an attribute of the span alone."""
        if self.span is not None and not self._ended:
            self.span.note(name, value)

    def fail(self, error_type: str, said: str) -> None:
        """End with a failure that is no exception."""
        self._end(error_type, said)

    def end(self, error: BaseException | None = None) -> None:
        """End, with why it failed."""
        if error is None:
            self._end(None)
        else:
            said = said_of(error)
            raised = said if isinstance(error, Exception) else None
            self._end(error_type_of(error), said, raised)

    def _end(self, error_type: str | None, said: str = "", raised: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        if self.span is not None:
            self.span.end(error_type, said, raised)
        if self.telemetry.metrics is not None:
            seconds = perf_counter() - self._began
            self.telemetry.metrics.took(self.attributes, seconds, error_type)


class Sending(Operation):
    """The way of one task, or of a batch, into its queue."""

    producer = True

    def __init__(
        self,
        telemetry: "Telemetry",
        attributes: dict[str, Any],
        *,
        batch: bool = False,
        within: "Request | None" = None,
    ) -> None:
        super().__init__(telemetry, attributes)
        self._batch = batch
        self._within = within
        self._unsent = 0
        # Its class and words: an error is held by nobody that its traceback leads to.
        self._first: tuple[str, str] | None = None
        #: What the operator continues the trace from; ``None`` where there is nothing.
        self.carrier: Mapping[str, str] | None = None
        if self.span is not None:
            self.carrier = self.span.carrier() or None

    def sending(self) -> "Sending":
        """Return what tells of the message that is made now."""
        return self

    def holds(self, task_id: str) -> None:
        """Note the task that goes out."""
        if self._batch:
            return
        self.note("messaging.message.id", task_id)
        if self._within is not None:
            self._within.note("messaging.message.id", task_id)

    def counts(self, tasks: int) -> None:
        """Note how many tasks the batch has."""
        self.note("messaging.batch.message_count", tasks)

    def refused(self, error: OperatorError) -> None:
        """Note a task of the batch that was not even sent."""
        self._unsent += 1
        if self._first is None:
            self._first = error_type_of(error), said_of(error)

    def settle(self, outcome: OperatorError | None) -> None:
        """Note what became of a message that was handed to the broker."""
        kind = None if outcome is None else error_type_of(outcome)
        if self.telemetry.metrics is not None and not isinstance(outcome, InvalidTaskError):
            self.telemetry.metrics.sent(self.attributes, kind)
        if isinstance(outcome, TransportError) and outcome.maybe_done:
            self.note("sandai.op.in_doubt", True)
        if not self._batch:
            self.end(outcome)
        elif outcome is not None:
            self.refused(outcome)

    def end(self, error: BaseException | None = None) -> None:
        """End, with why it failed; a batch has failed when any of it was not queued."""
        if error is None and self._first is not None:
            error_type, said = self._first
            self.note("sandai.op.unsent", self._unsent)
            self._end(error_type, f"{self._unsent} not queued: {said}", said)
        else:
            super().end(error)

    def _end(self, error_type: str | None, said: str = "", raised: str | None = None) -> None:
        super()._end(error_type, said, raised)
        if self._within is not None:
            self._within.submitted()
            self._within = None


class Request(Operation):
    """A call that submits one task or a batch and waits for what comes of it."""

    def __init__(
        self, telemetry: "Telemetry", attributes: dict[str, Any], priority: object
    ) -> None:
        super().__init__(telemetry, attributes)
        self._priority = priority
        self._inner: Sending | None = None

    def sending(self) -> Sending:
        """Begin the submission, whose span is a child of this one's."""
        self._inner = self.telemetry.submission(self._priority, self)
        return self._inner

    def submitted(self) -> None:
        """Let go of the submission: its span is as large as all else that a wait keeps."""
        self._inner = None

    def _end(self, error_type: str | None, said: str = "", raised: str | None = None) -> None:
        if self._inner is not None:
            # Given up before it was known what became of it, or answered: then it was queued.
            self._inner._end(error_type, said, raised)
        super()._end(error_type, said, raised)


def error_type_of(error: BaseException) -> str:
    """Return what ``error.type`` says: the name of the class that the caller gets."""
    return "OperatorConnectionError" if isinstance(error, TransportError) else type(error).__name__


def said_of(error: BaseException) -> str:
    """Return what an error of ours says, without passwords; of what others raise, nothing."""
    return str(redact(str(error))) if isinstance(error, OperatorError) else ""
