"""What both clients take as arguments and let be read."""

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from ._config import Config


class ClientArguments(TypedDict, total=False):
    """The keyword arguments of both clients, besides the operator's name and version."""

    broker_url: str | None
    result_backend: str | None
    timeout: float | None
    debug: bool
    priority: str
    cancel_key: str | None
    auto_forget_result: bool | None
    task_serializer: str | None
    result_serializer: str | None
    accept_content: Iterable[str] | None
    broker_pool_limit: int | None
    backend_pool_limit: int | None
    backend_poll_concurrency: int | None
    pool_acquire_timeout: float | None
    io_timeout: float
    submit_retries: int | None
    cancel_on_timeout: bool | None
    validate_options: bool | None
    tracing: bool | None
    metrics: bool | None
    shared_transport_scope: str | None
    broker_transport_options: Mapping[str, Any] | None
    result_backend_transport_options: Mapping[str, Any] | None


class ConfiguredClient:
    """A client's configuration, to read."""

    config: Config

    @property
    def operator_name(self) -> str:
        """The operator's name."""
        return self.config.operator_name

    @property
    def operator_version(self) -> str:
        """The operator's version."""
        return self.config.operator_version

    @property
    def timeout(self) -> float | None:
        """Seconds that a call without a timeout of its own waits; ``None``: no limit."""
        return self.config.timeout

    @property
    def debug(self) -> bool:
        """Whether each step is logged."""
        return self.config.debug

    @property
    def priority(self) -> str:
        """The priority of calls that name none."""
        return self.config.priority

    @property
    def cancel_key(self) -> str | None:
        """The cancel key of calls that name none."""
        return self.config.cancel_key

    @property
    def auto_forget_result(self) -> bool:
        """Whether results are deleted once read."""
        return self.config.auto_forget_result

    @property
    def task_name(self) -> str:
        """The Celery task's name."""
        return self.config.task_name

    @property
    def queue_names(self) -> dict[str, str]:
        """The queue of each priority."""
        return self.config.queue_names

    @property
    def broker_url(self) -> str:
        """The broker's URL, with its password."""
        return self.config.broker_url

    @property
    def result_backend(self) -> str:
        """The result backend's URL, with its password."""
        return self.config.result_backend

    def get_queue_info(self) -> dict[str, str]:
        """Return the queue of each priority."""
        return self.config.queue_names

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.operator_name} {self.operator_version}>"
