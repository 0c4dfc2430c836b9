"""A Celery app that is configured by us alone and touches nothing of the host's."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.utils import Settings
from celery.loaders.app import AppLoader
from kombu.exceptions import KombuError
from kombu.messaging import Producer

from sandai.op.models import OperatorError, redact

from ._amqp_url import is_amqp
from ._config import BrokerKey, Config
from ._errors import TransportError
from ._freeze import thaw
from ._kombu_connection import bounded_options, connect, failure

Permit = Callable[[], AbstractContextManager[None]]


class _PinnedSettings(Settings):  # type: ignore[misc]  # Celery is untyped
    """
    Celery's settings without its environment variables.

    ``Settings`` lets ``CELERY_BROKER_URL`` and its kin override what an app was
    explicitly told; here what was told holds.
    """

    @property
    def broker_url(self) -> Any:
        return self.get("broker_url")

    broker_read_url = broker_write_url = broker_url

    @property
    def result_backend(self) -> Any:
        return self.get("result_backend")

    def __repr__(self) -> str:
        # Celery's shows every value, the URLs' passwords among them.
        return f"<settings for {redact(self.broker_url)}>"

    __str__ = __repr__


class _NoConfigurationModule(AppLoader):  # type: ignore[misc]  # Celery is untyped
    """A loader that does not read the host's ``CELERY_CONFIG_MODULE``."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:
        return {}


class _PermittedAMQP(AMQP):  # type: ignore[misc]  # Celery is untyped
    """Celery's AMQP tools without kombu's process-wide producers; ``control`` asks here."""

    @property
    def producer_pool(self) -> "_PermittedProducers":
        return _PermittedProducers(self.app)

    publisher_pool = producer_pool


class OperatorApp(Celery):  # type: ignore[misc]  # Celery is untyped
    """
    A Celery app that is never current and uses none of kombu's global pools.

    Celery's own calls on it (``control``, ``send_task``) open a connection for
    the call, under *permit*, so that they too stay within the broker's budget.
    *make_backend* replaces the result backend that Celery would choose,
    *result_cls* its ``AsyncResult``; *in_process* says that workers are fakes on
    ``memory://``, which ``control`` reaches directly; *failed* makes the caller's error of a broker
    that fails in such a call.
    """

    amqp_cls = _PermittedAMQP

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        permit: Permit = nullcontext,
        make_backend: Callable[[Celery], Any] | None = None,
        result_cls: type | None = None,
        in_process: bool = False,
        failed: Callable[[TransportError], OperatorError] = lambda error: error,
    ) -> None:
        super().__init__(
            "sandai-op",
            loader=_NoConfigurationModule,
            set_as_current=False,
            fixups=[],
            changes=settings,
        )
        # The settings object stays the same one when Celery loads it later. Its
        # own __setattr__ would make the class a setting.
        object.__setattr__(self._conf, "__class__", _PinnedSettings)
        self._permit = permit
        #: The connection that this thread's call on the app holds.
        self._held = threading.local()
        self._make_backend = make_backend
        if result_cls is not None:
            self.AsyncResult = self.subclass_with_self(result_cls)
        self._failed = failed
        self._in_process = in_process
        if in_process:
            self.control_cls = "sandai.op.transport.testing._control:MemoryControl"

    @property
    def thread_oid(self) -> Any:
        """One reply queue for the process: any thread may wait for any task (``rpc://``)."""
        return self.oid

    @property
    def pool(self) -> "_PermittedConnections":
        """What stands in for kombu's process-wide connection pool."""
        return _PermittedConnections(self)

    def connection_or_acquire(
        self, connection: Any = None, pool: bool = True, *_: Any, **__: Any
    ) -> AbstractContextManager[Any]:
        """Return *connection*, or one of its own for the ``with`` block."""
        return nullcontext(connection) if connection is not None else self.pool.acquire()

    default_connection = connection_or_acquire

    def producer_or_acquire(self, producer: Any = None) -> AbstractContextManager[Any]:
        """Return *producer*, or one on a connection of its own for the ``with`` block."""
        if producer is not None:
            return nullcontext(producer)
        return _PermittedProducers(self).acquire()

    default_producer = producer_or_acquire

    @contextmanager
    def reaching_in_process(
        self, connect: Callable[[], AbstractContextManager[object]]
    ) -> Iterator[None]:
        """Hold a permit and a connection to ``memory://``, as any call of Celery's does."""
        with self._permit():
            try:
                connection = connect()
            except OSError as error:
                told = failure(self.conf.broker_url, error, maybe_done=False)
                raise self._failed(told) from error
            with connection:
                yield

    def _get_backend(self) -> Any:
        return super()._get_backend() if self._make_backend is None else self._make_backend(self)


class _PermittedConnections:
    """The part of kombu's pool that Celery uses, without keeping connections."""

    def __init__(self, app: OperatorApp) -> None:
        self._app = app

    @contextmanager
    def acquire(self, block: bool = True, timeout: float | None = None) -> Iterator[Any]:
        app = self._app
        if app._in_process:
            # kombu's transport of that name would take the message, and nobody get it.
            raise app._failed(TransportError("memory:// carries the client's own tasks alone"))
        if (held := getattr(app._held, "connection", None)) is not None:
            # ``control`` asks for a producer while it holds a connection: a second permit
            # would deadlock against its own first.
            yield held
            return
        with app._permit(), app.connection_for_write() as connection:
            errors = (*connection.connection_errors, *connection.channel_errors, KombuError)
            app._held.connection = connection
            try:
                connect(connection, app.conf.broker_connection_timeout)
                yield connection
            except OperatorError:
                raise
            except errors as error:
                if is_amqp(app.conf.broker_url):
                    connection.collect()  # which waits for no goodbye
                told = failure(app.conf.broker_url, error, maybe_done=False)
                raise app._failed(told) from error
            finally:
                app._held.connection = None

    @contextmanager
    def acquire_channel(self, block: bool = True) -> Iterator[Any]:
        with self.acquire() as connection:
            yield connection, connection.default_channel

    @property
    def connection(self) -> Any:
        """A connection that is never opened; ``send_task`` asks what kind it is of."""
        return self._app.connection_for_write()

    def force_close_all(self, *_: Any, **__: Any) -> None:
        """Nothing is kept open."""


class _OneTryProducer(Producer):
    """
    A producer that publishes once.

    ``control`` has kombu try again, which it does for good while the broker lets us in
    and takes nothing; and what it repeats may have been done.
    """

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["retry"] = False
        return super().publish(*args, **kwargs)  # type: ignore[no-untyped-call]  # kombu's


class _PermittedProducers:
    """The part of kombu's producer pool that Celery uses, without keeping producers."""

    def __init__(self, app: OperatorApp) -> None:
        self._app = app
        self.connections = app.pool

    @contextmanager
    def acquire(self, block: bool = True, timeout: float | None = None) -> Iterator[Any]:
        with self._app.pool.acquire() as connection:
            producer: Any = _OneTryProducer
            yield producer(connection, auto_declare=False)


def broker_app(key: BrokerKey, **kwargs: Any) -> OperatorApp:
    """Return an app that sends to the broker of a sharing key."""
    return OperatorApp(_broker_settings(key), **kwargs)


def client_app(config: Config, **kwargs: Any) -> OperatorApp:
    """Return an app with a client's own settings; *kwargs* are :class:`OperatorApp`'s."""
    settings = _broker_settings(config.broker_key) | {
        "result_backend": config.result_backend,
        "result_backend_transport_options": config.result_backend_transport_options,
        "result_serializer": config.result_serializer,
        "result_accept_content": list(config.accept_content),
        "accept_content": list(config.accept_content),
        "task_default_queue": config.queue_names[config.priority],
    }

    def failed(error: TransportError) -> OperatorError:
        return error.for_operator(config.operator_name, config.operator_version)

    return OperatorApp(settings, failed=failed, in_process=config.in_process, **kwargs)


def _broker_settings(key: BrokerKey) -> dict[str, Any]:
    return {
        "broker_url": key.broker_url,
        "broker_transport_options": bounded_options(
            key.broker_url, thaw(key.transport_options), key.io_timeout
        ),
        "broker_connection_timeout": key.io_timeout,
        "task_serializer": key.task_serializer,
        "task_publish_retry": False,
        "accept_content": sorted(key.accept_content),
    }
