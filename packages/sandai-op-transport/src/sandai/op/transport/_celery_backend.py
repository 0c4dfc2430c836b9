"""Result backends that are neither Redis nor the broker, through Celery's class; for threads."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from celery.backends.base import KeyValueStoreBackend
from celery.backends.cache import CacheBackend
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import ContentDisallowed, DecodeError

from sandai.op.models import ConfigurationError, protocol, redact

from ._app import OperatorApp
from ._backend import BackendStatistics, Reader
from ._config import BackendKey
from ._documents import DocumentDecoder, ResultDocument, from_meta, pending, undecodable
from ._errors import TransportError
from ._freeze import thaw
from ._limiter import limiter_of
from ._readers import Readers


class CeleryBackend:
    """
    Celery's own backend, asked under a permit: the number of calls is bounded.

    Exceptions stay the dicts they were stored as; Celery would instantiate the
    class that a result names.
    """

    def __init__(self, key: BackendKey) -> None:
        self._key = key
        self.limiter = limiter_of(
            key, "backend", min(key.backend_poll_concurrency, key.backend_pool_limit)
        )
        self._app = _backend_app(key)
        self._decoder = DocumentDecoder(key.result_serializer, sorted(key.accept_content))
        self.reply_to = str(self._app.oid)
        self._backends = threading.local()
        self._readers = Readers()
        self._check()

    def _check(self) -> None:
        """Raise :class:`ConfigurationError` for a backend that cannot even be built here."""
        try:
            backend = self._own()
            if isinstance(backend, CacheBackend):
                _ = backend.client  # loads the library, and connects to nothing yet
        except (ImproperlyConfigured, ImportError) as error:
            url = self._key.result_backend
            raise ConfigurationError("result_backend", url, str(error)) from error

    def before_submit(self) -> None:
        """Nothing to do: results are stored where they are looked for."""

    def look(self, task_ids: Sequence[str], *, acquire_timeout: float) -> list[ResultDocument]:
        """Ask Celery's backend for each task; see :meth:`Backend.look`."""
        documents = (
            self._guarded(partial(self._document, task_id), acquire_timeout) for task_id in task_ids
        )
        return [document for document in documents if document.state != "PENDING"]

    def delete(self, task_ids: Sequence[str], *, acquire_timeout: float) -> None:
        """Forget results."""
        for task_id in task_ids:
            self._guarded(partial(self._forget, task_id), acquire_timeout)

    def reader(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """Return the one reader of *owner*."""
        return self._readers.get(owner, make)

    def statistics(self) -> BackendStatistics:
        """Return a snapshot."""
        return BackendStatistics(self.limiter.statistics(), None, self._readers.statistics())

    def close(self) -> None:
        """Close the readers; Celery's backends keep what they keep."""
        self._readers.close()

    def evict(self, connection: Any, closed: Callable[[], None]) -> None:
        """Never called: this backend gives its permits back without a connection."""
        closed()

    def _guarded(self, call: Callable[[], Any], acquire_timeout: float) -> Any:
        self.limiter.acquire(self, acquire_timeout)
        try:
            return call()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            where = redact(self._key.result_backend)
            raise TransportError(f"result backend {where} failed: {said}") from error
        finally:
            self.limiter.release(self)

    def _document(self, task_id: str) -> ResultDocument:
        backend = self._own()
        if isinstance(backend, KeyValueStoreBackend):
            # Stored as Redis results are: read like them, by any accepted serializer.
            payload = backend.get(backend.get_key_for_task(task_id))
            if not payload:
                return pending(task_id)
            if isinstance(payload, str):
                payload = payload.encode("utf-8", "surrogatepass")  # which no decoder reads
            if isinstance(payload, bytes | bytearray | memoryview):
                return self._decoder.decode(task_id, bytes(payload))
        try:
            meta = backend.get_task_meta(task_id)
        except (DecodeError, ContentDisallowed, ValueError, TypeError, LookupError) as error:
            # What kombu and json raise for bytes that they cannot read.
            reason = f"it cannot be decoded ({protocol.describe_error(error)})"
            return undecodable(task_id, None, reason)
        document = from_meta(task_id, meta, meta)
        if document.ready:
            self._cache().pop(task_id, None)
        return document

    def _forget(self, task_id: str) -> None:
        self._cache().pop(task_id, None)
        try:
            self._own().forget(task_id)
        except (NotImplementedError, FileNotFoundError):
            return  # it cannot, or (file://) there is nothing to forget

    def _own(self) -> Any:
        """Return Celery's backend, one per thread: few of them are thread-safe."""
        backend = getattr(self._backends, "backend", None)
        if backend is None:
            backend = self._app.backend
            backend.exception_to_python = lambda stored: stored
            self._backends.backend = backend
        return backend

    def _cache(self) -> Any:
        return getattr(self._own(), "_cache", {})


def _backend_app(key: BackendKey) -> OperatorApp:
    app = OperatorApp({})
    app.conf.update(
        result_backend=key.result_backend,
        result_serializer=key.result_serializer,
        accept_content=sorted(key.accept_content),
        result_accept_content=sorted(key.accept_content),
        result_backend_transport_options=dict(thaw(key.transport_options)),
        result_backend_max_retries=0,
    )
    return app
