"""
Configuration as a value: resolved once, frozen, hashable.

An explicit argument wins over the environment, the environment over the
default. The environment is an argument of :func:`resolve`; nothing reads it on
import.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from attrs import field, frozen

from sandai.op.models import Priority, protocol, queue_name, redact, task_name

from ._extras import check_extra
from ._freeze import Frozen, freeze, thaw
from ._memory import in_process, is_memory
from ._serializers import check_serializer, serializer_names
from ._url import RedisAddress, check_backend_url, check_broker_url
from ._url_parts import scheme_of
from ._values import (
    as_boolean,
    as_count,
    as_duration,
    as_name,
    as_optional_text,
    as_positive_duration,
    as_retries,
    as_scope,
    as_text,
    as_url,
)

DEFAULT_URL = "redis://localhost:6379/0"
DEFAULT_TIMEOUT = 28800
Scope = Literal["operator", "process"]

_PREFIX = "SANDAI_OPERATOR_"


@frozen
class Config:
    """
    Everything a client was configured with, validated.

    Seconds for every timeout; ``timeout`` is ``None`` for no limit. Passwords
    do not appear in its repr.
    """

    operator_name: str
    operator_version: str
    broker_url: str = field(repr=redact)
    result_backend: str = field(repr=redact)
    timeout: float | None
    debug: bool
    priority: str
    cancel_key: str | None
    auto_forget_result: bool
    task_serializer: str
    result_serializer: str
    accept_content: tuple[str, ...]
    broker_pool_limit: int
    backend_pool_limit: int
    backend_poll_concurrency: int
    pool_acquire_timeout: float
    io_timeout: float
    submit_retries: int
    cancel_on_timeout: bool
    validate_options: bool
    tracing: bool
    metrics: bool
    shared_transport_scope: Scope
    _broker_options: Frozen = field(repr=False)
    _backend_options: Frozen = field(repr=False)

    @property
    def task_name(self) -> str:
        """The Celery task's name."""
        return task_name(self.operator_name, self.operator_version)

    @property
    def queue_names(self) -> dict[str, str]:
        """The queue of each priority."""
        return {
            priority.value: queue_name(priority, self.operator_name, self.operator_version)
            for priority in Priority
        }

    @property
    def broker_transport_options(self) -> dict[str, Any]:
        """The broker's options, a fresh copy."""
        return dict(thaw(self._broker_options))

    @property
    def result_backend_transport_options(self) -> dict[str, Any]:
        """The result backend's options, a fresh copy."""
        return dict(thaw(self._backend_options))

    @property
    def in_process(self) -> bool:
        """Whether broker and result backend are in this process: ``memory://``, both of them."""
        return is_memory(self.result_backend)

    @property
    def broker_key(self) -> "BrokerKey":
        """What two clients have in common when they share a broker."""
        return BrokerKey(
            self._scope_identity,
            self.broker_url,
            self.task_serializer,
            self.broker_pool_limit,
            frozenset(self.accept_content),
            self._broker_options,
            self.io_timeout,
            self.in_process,
        )

    @property
    def backend_key(self) -> "BackendKey":
        """What two clients have in common when they share a result backend."""
        return BackendKey(
            self._scope_identity,
            self.result_backend,
            self.result_serializer,
            self.backend_pool_limit,
            self.backend_poll_concurrency,
            frozenset(self.accept_content),
            self._backend_options,
            self.io_timeout,
            # rpc:// replies come over the broker's own connections.
            self.broker_key if scheme_of(self.result_backend) == "rpc" else None,
        )

    @property
    def _scope_identity(self) -> tuple[str, ...]:
        if self.shared_transport_scope == "process":
            return ()
        return (self.operator_name, self.operator_version)


@frozen
class BrokerKey:
    """The full sharing key of a broker."""

    scope: tuple[str, ...]
    broker_url: str = field(repr=redact)
    task_serializer: str
    broker_pool_limit: int
    accept_content: frozenset[str]
    transport_options: Frozen = field(repr=False)
    io_timeout: float
    #: ``memory://`` is kombu's transport of that name where the results are elsewhere.
    in_process: bool = False


@frozen
class BackendKey:
    """The full sharing key of a result backend."""

    scope: tuple[str, ...]
    result_backend: str = field(repr=redact)
    result_serializer: str
    backend_pool_limit: int
    backend_poll_concurrency: int
    accept_content: frozenset[str]
    transport_options: Frozen = field(repr=False)
    io_timeout: float
    broker: BrokerKey | None


def resolve(
    operator_name: str,
    operator_version: str,
    *,
    env: Mapping[str, str],
    broker_url: str | None = None,
    result_backend: str | None = None,
    timeout: float | None = DEFAULT_TIMEOUT,
    debug: bool = False,
    priority: str = "normal",
    cancel_key: str | None = None,
    auto_forget_result: bool | None = None,
    task_serializer: str | None = None,
    result_serializer: str | None = None,
    accept_content: Iterable[str] | None = None,
    broker_pool_limit: int | None = None,
    backend_pool_limit: int | None = None,
    backend_poll_concurrency: int | None = None,
    pool_acquire_timeout: float | None = None,
    io_timeout: float = 5.0,
    submit_retries: int | None = None,
    cancel_on_timeout: bool | None = None,
    validate_options: bool | None = None,
    tracing: bool | None = None,
    metrics: bool | None = None,
    shared_transport_scope: str | None = None,
    broker_transport_options: Mapping[str, Any] | None = None,
    result_backend_transport_options: Mapping[str, Any] | None = None,
) -> Config:
    """
    Return the validated configuration of one client.

    *env* is the environment (``os.environ``). Raises
    :class:`ConfigurationError`, which names the argument or the environment
    variable, and :class:`InvalidPriorityError`.
    """
    read = _Reader(env)
    url, backend_url = _urls(read, broker_url, result_backend)
    broker_options = freeze("broker_transport_options", broker_transport_options)
    backend_options = freeze("result_backend_transport_options", result_backend_transport_options)
    accepted = serializer_names("accept_content", accept_content)
    own, wire = read(
        "task_serializer", "CELERY_TASK_SERIALIZER", task_serializer, as_text, "msgpack"
    )
    check_serializer(own, wire, accepted)
    own, stored = read(
        "result_serializer", "CELERY_RESULT_SERIALIZER", result_serializer, as_text, "json"
    )
    check_serializer(own, stored, accepted)
    if in_process(url, backend_url):
        RedisAddress.parse(*url, thaw(broker_options))
        RedisAddress.parse(*backend_url, thaw(backend_options))
    else:
        check_broker_url(*url, thaw(broker_options))
        check_backend_url(*backend_url, thaw(backend_options), accepted)
    return Config(
        operator_name=as_name("operator_name", operator_name),
        operator_version=as_name("operator_version", operator_version),
        broker_url=url[1],
        result_backend=backend_url[1],
        timeout=protocol.check_timeout(timeout) or None,
        debug=as_boolean("debug", debug),
        priority=Priority.parse(priority).value,
        cancel_key=as_optional_text("cancel_key", cancel_key),
        auto_forget_result=read(
            "auto_forget_result", "AUTO_FORGET_RESULT", auto_forget_result, as_boolean, True
        )[1],
        task_serializer=wire,
        result_serializer=stored,
        accept_content=accepted,
        broker_pool_limit=read(
            "broker_pool_limit", "BROKER_POOL_LIMIT", broker_pool_limit, as_count, 8
        )[1],
        backend_pool_limit=read(
            "backend_pool_limit", "BACKEND_POOL_LIMIT", backend_pool_limit, as_count, 8
        )[1],
        backend_poll_concurrency=read(
            "backend_poll_concurrency",
            "BACKEND_POLL_CONCURRENCY",
            backend_poll_concurrency,
            as_count,
            4,
        )[1],
        pool_acquire_timeout=read(
            "pool_acquire_timeout", "POOL_ACQUIRE_TIMEOUT", pool_acquire_timeout, as_duration, 30.0
        )[1],
        io_timeout=as_positive_duration("io_timeout", io_timeout),
        submit_retries=read("submit_retries", "SUBMIT_RETRIES", submit_retries, as_retries, 0)[1],
        cancel_on_timeout=read(
            "cancel_on_timeout", "CANCEL_ON_TIMEOUT", cancel_on_timeout, as_boolean, False
        )[1],
        validate_options=read.needing("validate_options", validate_options, extra="schema"),
        tracing=read.needing("tracing", tracing, extra="otel"),
        metrics=read.needing("metrics", metrics, extra="otel"),
        shared_transport_scope=read(
            "shared_transport_scope",
            "SHARED_TRANSPORT_SCOPE",
            shared_transport_scope,
            as_scope,
            "operator",
        )[1],
        broker_options=broker_options,
        backend_options=backend_options,
    )


@frozen
class _Reader:
    """Take a setting from its argument, else from the environment, else its default."""

    env: Mapping[str, str]

    def __call__(
        self,
        setting: str,
        variable: str,
        explicit: object,
        convert: Callable[[str, object], Any],
        default: Any,
    ) -> tuple[str, Any]:
        """Return what the value is called, for errors, and the value."""
        if explicit is not None:
            return setting, convert(setting, explicit)
        name = _PREFIX + variable
        if text := self.env.get(name, "").strip():
            return name, convert(name, text)
        return setting, default

    def needing(self, setting: str, explicit: object, *, extra: str) -> bool:
        """Return a boolean; where it is true, the library of an *extra* must be there."""
        name, wanted = self(setting, setting.upper(), explicit, as_boolean, False)
        if wanted:
            check_extra(extra, name)
        return bool(wanted)


def _urls(
    read: _Reader, broker_url: str | None, result_backend: str | None
) -> tuple[tuple[str, str], tuple[str, str]]:
    broker = read("broker_url", "CELERY_BROKER_URL", broker_url or None, as_url, DEFAULT_URL)
    if broker_url and not result_backend:
        # The environment's backend belongs to the environment's broker.
        return broker, ("result_backend", broker[1])
    backend = read("result_backend", "CELERY_RESULT_BACKEND", result_backend or None, as_url, None)
    return broker, (backend if backend[1] is not None else ("result_backend", broker[1]))
