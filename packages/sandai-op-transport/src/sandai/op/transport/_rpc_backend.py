"""Results that are messages on one reply queue of the broker (``rpc://``); for threads."""

import math
import threading
import time
from collections.abc import Callable, Sequence

from kombu.message import Message

from sandai.op.models import protocol

from ._app import OperatorApp, broker_app
from ._backend import BackendStatistics, Reader
from ._config import BackendKey
from ._documents import ResultDocument, from_meta, undecodable
from ._errors import TransportError
from ._kombu_connection import LineOpener
from ._kombu_line import Line
from ._limiter import limiter_of
from ._pool import ConnectionPool
from ._readers import Readers

#: Results kept for whoever asks later; the oldest beyond that are dropped.
_MOST_KEPT = 10_000
_MESSAGES_PER_LOOK = 1_000
#: Seconds for which the reply queue is taken to be there still; no broker restarts in less.
_SEEN_FOR = 1.0


class RpcBackend:
    """
    Take replies off the queue that all tasks of this process name, and keep them.

    The queue is Celery's own for ``rpc://``: one a process, so one connection at a
    time reads it. Whoever looks takes what is there, for the others too.
    """

    def __init__(self, key: BackendKey) -> None:
        if key.broker is None:
            raise TypeError("a key for rpc:// results has a broker's key in it")
        self.limiter = limiter_of(key, "backend", 1)
        self._app: OperatorApp = broker_app(key.broker)
        self._app.conf.update(
            result_backend=key.result_backend,
            result_serializer=key.result_serializer,
            result_accept_content=sorted(key.accept_content),
        )
        self._accept = sorted(key.accept_content)
        self.reply_to = str(self._app.oid)
        self._binding = self._app.backend.binding
        self._opener = LineOpener(key.broker)
        self._pool: ConnectionPool[Line] = ConnectionPool(self.limiter, self._opener)
        self._io_timeout = key.io_timeout
        self._lock = threading.Lock()
        self._documents: dict[str, ResultDocument] = {}
        self._seen = -math.inf
        self._readers = Readers()

    def before_submit(self) -> None:
        """
        See that the reply queue is there: a reply to one that is not is lost.

        It does not outlive the broker, nor one that nobody has looked at for as long
        as Celery keeps results.
        """
        if time.monotonic() - self._seen > _SEEN_FOR:
            self._take(self._io_timeout)

    def look(self, task_ids: Sequence[str], *, acquire_timeout: float) -> list[ResultDocument]:
        """Take what has come, and return what is there; see :meth:`Backend.look`."""
        self._take(acquire_timeout)
        with self._lock:
            found = (self._documents.get(task_id) for task_id in task_ids)
            return [document for document in found if document is not None]

    def delete(self, task_ids: Sequence[str], *, acquire_timeout: float) -> None:
        """Forget results; they are nowhere else any more."""
        with self._lock:
            for task_id in task_ids:
                self._documents.pop(task_id, None)

    def reader(self, owner: object, make: Callable[[], Reader]) -> Reader:
        """Return the one reader of *owner*."""
        return self._readers.get(owner, make)

    def statistics(self) -> BackendStatistics:
        """Return a snapshot."""
        return BackendStatistics(self.limiter.statistics(), None, self._readers.statistics())

    def close(self) -> None:
        """Close readers and connection."""
        self._readers.close()
        self._pool.close()

    def _take(self, acquire_timeout: float) -> None:
        with self._pool.lease(acquire_timeout) as line:
            try:
                queue = self._binding(line.channel)
                if queue.name not in line.known_queues:
                    queue.declare()
                    line.known_queues.add(queue.name)
                for _ in range(_MESSAGES_PER_LOOK):
                    message = queue.get(no_ack=True, accept=self._accept)
                    if message is None:
                        break
                    self._keep(message)
                self._seen = time.monotonic()
            except Exception as error:
                raise self._failure(error) from error

    def _failure(self, error: Exception) -> TransportError:
        return self._opener.failure(error, maybe_done=False)

    def _keep(self, message: Message) -> None:
        task_id = str(message.properties.get("correlation_id") or "")
        try:
            meta = message.decode()
        except Exception as error:
            reason = f"it cannot be decoded ({protocol.describe_error(error)})"
            document = undecodable(task_id, message.body, reason)
        else:
            document = from_meta(task_id, meta, meta)
        with self._lock:
            known = self._documents.get(task_id)
            if known is None or not known.ready:
                self._documents[task_id] = document
            while len(self._documents) > _MOST_KEPT:
                del self._documents[next(iter(self._documents))]
