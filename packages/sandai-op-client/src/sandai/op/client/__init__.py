"""The client of sandai operators for threads."""

from sandai.op.models import (
    BatchTaskResult,
    ClientClosedError,
    ClientPoolTimeoutError,
    ConfigurationError,
    HealthCheckResult,
    InvalidPriorityError,
    InvalidResultFormatError,
    InvalidTaskError,
    InvalidTaskStatusError,
    OperatorConnectionError,
    OperatorDescription,
    OperatorError,
    Priority,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskResult,
    TaskTimeoutError,
)
from sandai.op.transport import HubStatistics, Inspection

from ._client import OperatorClient, create_client
from ._handle import OperatorAsyncResult, SubmittedTask

__all__ = [
    "BatchTaskResult",
    "ClientClosedError",
    "ClientPoolTimeoutError",
    "ConfigurationError",
    "HealthCheckResult",
    "HubStatistics",
    "Inspection",
    "InvalidPriorityError",
    "InvalidResultFormatError",
    "InvalidTaskError",
    "InvalidTaskStatusError",
    "OperatorAsyncResult",
    "OperatorClient",
    "OperatorConnectionError",
    "OperatorDescription",
    "OperatorError",
    "Priority",
    "SubmittedTask",
    "TaskCancelledError",
    "TaskDeadlineExceededError",
    "TaskExecutionError",
    "TaskResult",
    "TaskTimeoutError",
    "create_client",
]
