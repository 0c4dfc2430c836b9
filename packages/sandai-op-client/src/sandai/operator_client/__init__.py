"""
The older import path: everything of ``sandai-operator-client``, on the new client.

The async names come from ``sandai.op.aio`` (``pip install sandai-op-aio``) when
they are first asked for.
"""

import importlib
from typing import Any

from sandai.op.client import (
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
    SubmittedTask,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
    TaskTimeoutError,
)
from sandai.op.models import VALID_PRIORITIES, LegacyTaskResult
from sandai.op.models import TaskResult as OperatorTaskResult
from sandai.op.transport import Config as ClientConfig

from ._legacy import (
    BatchProcessingError,
    ErrorInfoDict,
    InputArtifactDict,
    LegacyBatchTasks,
    OperatorClient,
    TaskMetaDict,
    TaskPayloadDict,
    create_client,
)

__all__ = [
    "VALID_PRIORITIES",
    "BatchProcessingError",
    "BatchTaskResult",
    "ClientClosedError",
    "ClientConfig",
    "ClientPoolTimeoutError",
    "ConfigurationError",
    "ErrorInfoDict",
    "HealthCheckResult",
    "InputArtifactDict",
    "InvalidPriorityError",
    "InvalidResultFormatError",
    "InvalidTaskError",
    "InvalidTaskStatusError",
    "LegacyBatchTasks",
    "LegacyTaskResult",
    "OperatorClient",
    "OperatorConnectionError",
    "OperatorDescription",
    "OperatorError",
    "OperatorTaskResult",
    "SubmittedTask",
    "TaskCancelledError",
    "TaskDeadlineExceededError",
    "TaskExecutionError",
    "TaskMetaDict",
    "TaskPayloadDict",
    "TaskTimeoutError",
    "create_client",
]

_ASYNC_NAMES = frozenset(
    {"AsyncOperatorClient", "AsyncSubmittedTask", "AsyncTaskHandle", "create_async_client"}
)


def __getattr__(name: str) -> Any:
    if name not in _ASYNC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        importlib.import_module("sandai.op.aio")
    except ImportError as error:
        raise ImportError(f"{name} needs the asyncio client: pip install sandai-op-aio") from error
    return getattr(importlib.import_module("._legacy_aio", __name__), name)
