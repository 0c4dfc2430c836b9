"""The Celery app of a client, for what Celery itself sends."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from celery import Celery
from celery.backends.base import DisabledBackend

from sandai.op.transport import Config, Transport, client_app


class ClientApp:
    """
    Make a client's app when it is first asked for.

    What Celery sends on it takes a permit of the broker. It reads no results: it
    would do so on connections of its own. *check_open* raises once the client is
    closed.
    """

    def __init__(
        self, config: Config, transport: Transport, check_open: Callable[[], None]
    ) -> None:
        self._config = config
        self._transport = transport
        self._check_open = check_open
        self._lock = threading.Lock()
        self._app: Celery | None = None

    def get(self) -> Celery:
        """Return the app."""
        with self._lock:
            if self._app is None:
                self._app = client_app(
                    self._config, permit=self._permit, make_backend=DisabledBackend
                )
            return self._app

    def child(self, task_id: str) -> object:
        """Return what Celery keeps of a task that was sent from inside another."""
        return self.get().AsyncResult(task_id)

    def _permit(self) -> AbstractContextManager[None]:
        self._check_open()
        return self._transport.broker.permit(self._config.pool_acquire_timeout)
