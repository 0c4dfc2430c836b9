"""The client of sandai operators for asyncio."""

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

from ._client import AsyncOperatorClient, create_async_client
from ._handle import AsyncSubmittedTask, AsyncTaskHandle
from ._result_stream import ResultStream

__all__ = [
    "AsyncOperatorClient",
    "AsyncSubmittedTask",
    "AsyncTaskHandle",
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
    "OperatorConnectionError",
    "OperatorDescription",
    "OperatorError",
    "Priority",
    "ResultStream",
    "TaskCancelledError",
    "TaskDeadlineExceededError",
    "TaskExecutionError",
    "TaskResult",
    "TaskTimeoutError",
    "create_async_client",
]
