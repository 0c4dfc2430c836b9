"""Tasks: their names on the wire, and what an operator receives."""

import math
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from attrs import define, field

from ._errors import InvalidPriorityError, TaskDeadlineExceededError

PERSISTENT_OUTPUT = "persistent-output"
DESCRIPTION_TASK_TYPE = "desc"
#: Options of a probe.
PROBE_OPTIONS: Mapping[str, Any] = {"test": True}


class Priority(StrEnum):
    """A task's priority: it chooses the queue, never Celery's message priority."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"
    VERY_LOW = "very_low"

    @classmethod
    def parse(cls, value: object) -> "Priority":
        """Return the priority called *value*, or raise :class:`InvalidPriorityError`."""
        try:
            return cls(value)  # type: ignore[arg-type]  # any object may come from a caller
        except ValueError:
            raise InvalidPriorityError(value, VALID_PRIORITIES) from None


VALID_PRIORITIES: tuple[str, ...] = tuple(priority.value for priority in Priority)


def task_name(operator_name: str, operator_version: str) -> str:
    """Return the Celery task name that an operator registers."""
    return f"sandai_operator.{operator_name}.{operator_version}.process_task"


def queue_name(priority: str, operator_name: str, operator_version: str) -> str:
    """
    Return the queue that an operator's workers consume for one priority.

    Raises :class:`InvalidPriorityError` for an unknown priority.
    """
    return f"{Priority.parse(priority).value}.{operator_name}.{operator_version}"


@define
class Artifact:
    """
    An input or an output: a URI in a named slot.

    ``extra`` keeps the keys that this version does not know; they go out again
    at the artifact's top level.
    """

    uri: str = ""
    slot: str = ""
    meta: dict[str, Any] = field(factory=dict)
    extra: dict[str, Any] = field(factory=dict)


@define
class TaskRequest:
    """
    What a client sent, as an operator sees it.

    ``deadline`` is Unix seconds or ``None``; ``tracing`` is the W3C carrier
    (``traceparent``, ``tracestate``) or empty, from which OpenTelemetry goes on with
    ``TraceContextTextMapPropagator().extract(request.tracing)``; ``extra`` keeps
    unknown keys.
    """

    artifacts: list[Artifact] = field(factory=list)
    options: dict[str, Any] = field(factory=dict)
    meta: dict[str, Any] = field(factory=dict)
    deadline: float | None = None
    cancel_key: str | None = None
    task_type: str | None = None
    tracing: dict[str, str] = field(factory=dict)
    extra: dict[str, Any] = field(factory=dict)
    task_id: str = ""

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any], *, task_id: str = "") -> "TaskRequest":
        """
        Structure a Celery task's keyword arguments.

        Missing ones get their defaults and unknown ones are kept in ``extra``.
        Raises :class:`InvalidTaskError`, which names the path of the first
        value of the wrong type (``artifacts[1].uri``).
        """
        from ._converter import structure_request

        return structure_request(kwargs, task_id=task_id)

    def to_kwargs(self) -> dict[str, Any]:
        """
        Return the keyword arguments again, plain for JSON and msgpack alike.

        Raises :class:`InvalidTaskError` with the path of a value that one of
        them cannot carry.
        """
        from ._converter import unstructure_request

        return unstructure_request(self)

    @property
    def is_description(self) -> bool:
        """Whether the client asks what the operator is, not for work."""
        return self.task_type == DESCRIPTION_TASK_TYPE

    @property
    def is_probe(self) -> bool:
        """Whether the client only asks for a sign of life."""
        return not self.artifacts and self.options == PROBE_OPTIONS

    @property
    def persistent_output(self) -> bool:
        """Whether the caller wants uploaded outputs kept."""
        return bool(self.meta.get(PERSISTENT_OUTPUT, False))

    def in_slot(self, slot: str) -> Iterator[Artifact]:
        """Yield the artifacts of one slot, in order."""
        return (artifact for artifact in self.artifacts if artifact.slot == slot)

    def remaining(self, now: float | None = None) -> float:
        """Return the seconds until the deadline: negative after it, infinite without one."""
        if self.deadline is None:
            return math.inf
        return self.deadline - (time.time() if now is None else now)

    def expired(self, now: float | None = None) -> bool:
        """Return whether the deadline has passed (*now* is Unix seconds)."""
        return self.remaining(now) <= 0

    def raise_if_expired(self, now: float | None = None) -> None:
        """Raise :class:`TaskDeadlineExceededError` once the deadline has passed."""
        current = time.time() if now is None else now
        if self.deadline is not None and current >= self.deadline:
            raise TaskDeadlineExceededError(self.task_id, self.deadline, current)
