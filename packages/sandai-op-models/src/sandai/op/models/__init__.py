"""The words of sandai operators: tasks, results, errors and their wire form."""

from . import batch, protocol, stream
from ._errors import (
    ClientClosedError,
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorConnectionError,
    OperatorError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskTimeoutError,
)
from ._redact import redact
from ._results import (
    BatchTaskResult,
    HealthCheckResult,
    LegacyTaskResult,
    OperatorDescription,
    TaskResult,
    error_reply,
)
from ._tasks import VALID_PRIORITIES, Artifact, Priority, TaskRequest, queue_name, task_name

__all__ = [
    "VALID_PRIORITIES",
    "Artifact",
    "BatchTaskResult",
    "ClientClosedError",
    "ClientPoolTimeoutError",
    "ConfigurationError",
    "HealthCheckResult",
    "InvalidPriorityError",
    "InvalidResultFormatError",
    "InvalidTaskError",
    "InvalidTaskStatusError",
    "LegacyTaskResult",
    "OperatorConnectionError",
    "OperatorDescription",
    "OperatorError",
    "Priority",
    "TaskCancelledError",
    "TaskDeadlineExceededError",
    "TaskExecutionError",
    "TaskRequest",
    "TaskResult",
    "TaskTimeoutError",
    "batch",
    "error_reply",
    "protocol",
    "queue_name",
    "redact",
    "stream",
    "task_name",
]
