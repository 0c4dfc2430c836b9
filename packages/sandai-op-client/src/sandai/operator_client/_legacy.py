"""What the older distribution had and the new one has no use for."""

import warnings
from typing import Any, TypedDict

from attrs import define

from sandai.op import client
from sandai.op.models import OperatorError

#: What the batch calls take: pairs of artifacts and options.
LegacyBatchTasks = list[tuple[list[dict[str, Any]], dict[str, Any]]]

_IGNORED = ("result_backend_max_connections", "thread_safe_mode")


class OperatorClient(client.OperatorClient):
    """The client, with the older one's ignored arguments still taken."""

    def __init__(
        self, operator_name: str, operator_version: str, *args: Any, **kwargs: Any
    ) -> None:
        without_ignored(kwargs, stacklevel=3)
        super().__init__(operator_name, operator_version, *args, **kwargs)


def create_client(operator_name: str, operator_version: str, **kwargs: Any) -> OperatorClient:
    """Return an :class:`OperatorClient`; *kwargs* are its arguments."""
    without_ignored(kwargs, stacklevel=3)
    return OperatorClient(operator_name, operator_version, **kwargs)


def without_ignored(kwargs: dict[str, Any], *, stacklevel: int) -> None:
    """Drop the older arguments that no longer mean anything, with a warning."""
    for name in _IGNORED:
        if kwargs.pop(name, None) is not None:
            warnings.warn(
                f"{name} is ignored: backend_pool_limit bounds the connections, "
                "and every client is safe for threads",
                DeprecationWarning,
                stacklevel,
            )


@define(slots=False)
class BatchProcessingError(OperatorError):
    """Never raised, as before; kept for ``except`` clauses."""

    failed_tasks: list[Any]
    total_tasks: int

    def _sentence(self) -> str:
        return f"{len(self.failed_tasks)} of {self.total_tasks} tasks of the batch failed"


class InputArtifactDict(TypedDict, total=False):
    """An input artifact as a plain dict."""

    uri: str
    slot: str
    meta: dict[str, Any]


class TaskMetaDict(TypedDict, total=False):
    """A task's ``meta``."""

    persistent_output: bool


class TaskPayloadDict(TypedDict, total=False):
    """A task's keyword arguments on the wire."""

    meta: dict[str, Any]
    artifacts: list[dict[str, Any]]
    options: dict[str, Any]
    deadline: float
    cancel_key: str
    task_type: str


class ErrorInfoDict(TypedDict, total=False):
    """The ``error`` part of a reply."""

    error_type: str
    error_message: str
    error_details: dict[str, Any]
