"""
Every error that the distributions raise on purpose.

All derive from :class:`OperatorError`, carry their fields as attributes and
survive ``pickle`` and ``copy`` (the fields are the exception's ``args``).
"""

from collections.abc import Sequence
from typing import Any

from attrs import define, field

from ._redact import redact
from ._text import printable, text


def _mapping_or_empty(value: Any) -> dict[str, Any]:
    return {} if value is None else value


class OperatorError(Exception):
    """
    Base class of every error of these distributions.

    The text is fit for a terminal or a log, whatever an operator, a stored result
    or a caller put into it: one line, without control characters, of bounded
    length. The fields have everything as it came.
    """

    def __str__(self) -> str:
        return printable(text(self, type(self)._sentence))

    def _sentence(self) -> str:
        return Exception.__str__(self)


@define(slots=False)
class TaskTimeoutError(OperatorError, TimeoutError):
    """
    This client's wait for a result ran out; the task itself may still run.

    ``timeout`` is in seconds. When the result backend could not be reached
    meanwhile, the last failure is the error's ``__cause__``, and no more is known.

    ``state`` is what a last look showed:

    - ``queued``: messages wait in its queue, and it may be one of them;
    - ``picked_up``: the queue is empty: a worker has taken it and is at it, or it was lost,
      or its result was;
    - ``started``: a worker stored a state, which is ``stored_state`` (``STARTED``, ``RETRY``,
      an operator's own);
    - ``finished``: its result came a moment too late;
    - ``unknown``: nothing could be seen.

    ``queue_depth`` is the number of messages in ``queue``, or in all of the operator's
    queues where ``queue`` is ``None``: a handle does not know where its task was sent.
    """

    task_id: str
    timeout: float | None = None
    state: str = "unknown"
    queue: str | None = None
    queue_depth: int | None = None
    stored_state: str | None = None

    def _sentence(self) -> str:
        late = f"no result of task {self.task_id} within {_seconds(self.timeout)}"
        if self.__cause__ is not None:
            late += f" (reading results fails: {self.__cause__})"  # not every log shows causes
        return f"{late}{self._explanation()} (attach(task_id) waits for it again)"

    def _explanation(self) -> str:
        match self.state:
            case "queued":
                where = f"queue {self.queue}" if self.queue else "the operator's queues"
                wait = (
                    "1 message waits"
                    if self.queue_depth == 1
                    else (f"{self.queue_depth} messages wait")
                )
                return (
                    f": {wait} in {where}, and it may be among them; no worker has come to it, or "
                    "there is none: see client.inspect()"
                )
            case "picked_up":
                where = f"queue {self.queue} is" if self.queue else "the operator's queues are"
                never = "" if self.queue else ", or it was never submitted here"
                return (
                    f": {where} empty: a worker has taken it and is at it, or it was lost (the "
                    "worker died, the broker was emptied, its result is elsewhere or "
                    f"deleted){never}"
                )
            case "started":
                return f": a worker is at it, in state {self.stored_state}"
            case "finished":
                return ", but it is there now"
            case _:
                return "; it may still be queued or running"


@define(slots=False)
class TaskExecutionError(OperatorError):
    """
    The operator reported an error, or the Celery task itself failed.

    ``error_type`` is the operator's word for the error. Where the Celery task
    failed (it raised instead of answering), ``error_details`` has the
    ``exception_type`` and, when the worker stored one, the ``traceback``.
    """

    task_id: str
    error_message: str
    error_details: dict[str, Any] = field(default=None, converter=_mapping_or_empty)
    error_type: str = "UnknownError"

    def _sentence(self) -> str:
        kind = "" if self.error_type == "UnknownError" else f"{self.error_type}: "
        return f"task {self.task_id} failed: {kind}{self.error_message}"


@define(slots=False)
class TaskDeadlineExceededError(OperatorError):
    """
    The operator skipped the task because its deadline had passed.

    ``deadline`` and ``current_time`` are Unix seconds of the operator's clock.
    """

    task_id: str
    deadline: float = 0.0
    current_time: float = 0.0

    def _sentence(self) -> str:
        late = self.current_time - self.deadline
        return f"task {self.task_id} was skipped: its deadline passed {late:.3f} s before it began"


@define(slots=False)
class TaskCancelledError(OperatorError):
    """The operator skipped the task for its cancel key, or the task was revoked."""

    task_id: str
    cancel_key: str = ""

    def _sentence(self) -> str:
        how = f"by cancel_key {self.cancel_key!r}" if self.cancel_key else "(revoked)"
        return f"task {self.task_id} was cancelled {how}"


@define(slots=False)
class InvalidTaskStatusError(OperatorError):
    """The reply's ``status`` is neither ``success`` nor ``error``."""

    task_id: str
    status: str

    def _sentence(self) -> str:
        return (
            f"task {self.task_id} answered with the unknown status {self.status!r}; "
            "an operator answers 'success' or 'error'"
        )


@define(slots=False)
class InvalidResultFormatError(OperatorError):
    """
    The reply is not a mapping, or the stored result cannot be decoded.

    ``result`` is what came: the value, or the undecodable bytes. ``reason``
    says what is wrong with it.
    """

    task_id: str
    result: Any = field(repr=False)
    reason: str | None = None

    def _sentence(self) -> str:
        what = self.reason or f"a mapping was expected, not {type(self.result).__name__}"
        return f"task {self.task_id} answered in an invalid format: {what}"


@define(slots=False)
class InvalidPriorityError(OperatorError, ValueError):
    """The priority is none of the four that name a queue."""

    priority: Any
    valid_priorities: Sequence[str] = ("high", "normal", "low", "very_low")

    def _sentence(self) -> str:
        return f"invalid priority {self.priority!r}: use one of {', '.join(self.valid_priorities)}"


@define(slots=False)
class ClientPoolTimeoutError(OperatorError, TimeoutError):
    """
    No slot in the connection budget became free in time.

    ``timeout`` is ``pool_acquire_timeout`` in seconds, ``limit`` the budget;
    ``in_use`` and ``waiting`` are what the budget looked like at that moment.
    """

    pool_name: str
    timeout: float
    limit: int
    in_use: int | None = None
    waiting: int | None = None

    def _sentence(self) -> str:
        use = "" if self.in_use is None else f", {self.in_use} in use, {self.waiting} waiting"
        return (
            f"no free slot in the {self.pool_name} pool within {_seconds(self.timeout)} "
            f"(limit {self.limit}{use}); raise the pool's limit or pool_acquire_timeout"
        )


@define(slots=False)
class OperatorConnectionError(OperatorError, ConnectionError):
    """
    The broker or the result backend is unreachable, refusing or full.

    Where a submission's fate is unknown (the connection broke after bytes went
    out), ``task_id`` is its id: ``attach(task_id)`` waits for it. Otherwise
    ``task_id`` is ``None`` and nothing was queued.
    """

    operator_name: str
    operator_version: str
    reason: str | None = field(default=None, converter=redact)
    task_id: str | None = None

    def _sentence(self) -> str:
        reason = self.reason or "no connection"
        what = f"operator {self.operator_name} {self.operator_version}: {reason}"
        if self.task_id is None:
            return what
        fate = f"whether task {self.task_id} was queued is unknown (attach to it to find out)"
        return f"{what}; {fate}"


@define(slots=False)
class ConfigurationError(OperatorError, ValueError):
    """A setting, URL or environment variable that cannot be used (secrets masked)."""

    setting: str
    value: Any = field(converter=redact)
    reason: str = field(converter=redact)

    def _sentence(self) -> str:
        return f"{self.setting}={self.value!r}: {self.reason}"


@define(slots=False)
class InvalidTaskError(OperatorError, ValueError):
    """
    Artifacts, options or a task's fields of the wrong shape.

    ``path`` names the place, like ``input_artifacts[2].uri``.
    """

    path: str
    reason: str = field(converter=redact)

    def _sentence(self) -> str:
        return f"{self.path}: {self.reason}"


@define(slots=False)
class ClientClosedError(OperatorError):
    """The client was closed before the call, or while the call waited."""

    operator_name: str
    operator_version: str

    def _sentence(self) -> str:
        return f"the client of operator {self.operator_name} {self.operator_version} is closed"


def _seconds(value: float | None) -> str:
    return "the time allowed" if value is None else f"{value:g} s"
