"""Results as messages on a reply queue: taken once, kept for all, bounded."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from celery import Celery

from sandai.op.models import ClientPoolTimeoutError, InvalidResultFormatError, TaskExecutionError
from sandai.op.transport import TransportError, _rpc_backend, resolve
from sandai.op.transport._rpc_backend import RpcBackend

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def backend() -> Iterator[RpcBackend]:
    """Yield a backend on kombu's broker in memory."""
    config = resolve("clipper", "v1", env={}, broker_url="memory://", result_backend="rpc://")
    backend = RpcBackend(config.backend_key)
    yield backend
    backend.close()


class Worker:
    """Answers to the backend's reply queue, by Celery's own backend."""

    def __init__(self, backend: RpcBackend, serializer: str = "json") -> None:
        self._app = Celery("worker", set_as_current=False, broker="memory://", backend="rpc://")
        self._app.conf.update(result_serializer=serializer, accept_content=["json", "pickle"])
        self._reply_to = backend.reply_to

    def store(self, result: Any, state: str = "SUCCESS", task_id: str = "") -> str:
        """Store a result as a worker does, and return its task's id."""
        request: Any = type("Request", (), {})()
        request.reply_to, request.correlation_id = self._reply_to, task_id or str(uuid4())
        self._app.backend.store_result(request.correlation_id, result, state, request=request)
        return str(request.correlation_id)


def test_results_are_taken_and_kept(backend: RpcBackend) -> None:
    """What comes for others is kept for them, until it is deleted."""
    backend.before_submit()
    worker = Worker(backend)
    first, second = worker.store({"n": 1}), worker.store({"n": 2})
    [found] = backend.look([second], acquire_timeout=1)
    assert found.reply() == {"n": 2}
    for _ in range(2):
        documents = backend.look([first, second, "nobody"], acquire_timeout=1)
        assert [document.reply() for document in documents] == [{"n": 1}, {"n": 2}]
    backend.delete([first], acquire_timeout=1)
    assert backend.look([first], acquire_timeout=1) == []


def test_states_and_failures(backend: RpcBackend) -> None:
    """A state in between is no end; a failure is one, and imports nothing."""
    backend.before_submit()
    worker = Worker(backend)
    task_id = worker.store(None, "STARTED")
    [found] = backend.look([task_id], acquire_timeout=1)
    assert (found.state, found.ready) == ("STARTED", False)
    worker.store(ValueError("boom"), "FAILURE", task_id)
    worker.store(None, "STARTED", task_id)  # late: it changes nothing
    [found] = backend.look([task_id], acquire_timeout=1)
    with pytest.raises(TaskExecutionError) as caught:
        found.reply()
    assert caught.value.error_type == "ValueError"


def test_a_pickle_is_refused(backend: RpcBackend) -> None:
    """What is not in accept_content is the typed error of its own task."""
    backend.before_submit()
    bad, good = Worker(backend, "pickle").store({}), Worker(backend).store({"n": 1})
    refused, found = backend.look([bad, good], acquire_timeout=1)
    with pytest.raises(InvalidResultFormatError):
        refused.reply()
    assert found.reply() == {"n": 1}


def test_one_connection_at_a_time(backend: RpcBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads look over one connection, which the last close() closes."""
    opened: list[Any] = []
    open_line = backend._opener.open

    def noted(timeout: float | None) -> Any:
        opened.append(open_line(timeout))
        return opened[-1]

    monkeypatch.setattr(backend._opener, "open", noted)
    backend.before_submit()
    threads = [
        threading.Thread(target=backend.look, args=(["a"],), kwargs={"acquire_timeout": 10})
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    [line] = opened
    with backend._pool.lease(1), pytest.raises(ClientPoolTimeoutError):
        backend.look(["a"], acquire_timeout=0)
    backend.close()
    assert not line.connection.connected
    assert backend.statistics().commands.idle == 0


def test_what_nobody_asks_for_is_dropped(
    backend: RpcBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest of more results than are kept go first."""
    monkeypatch.setattr(_rpc_backend, "_MOST_KEPT", 2)
    backend.before_submit()
    worker = Worker(backend)
    ids = [worker.store({"n": n}) for n in range(3)]
    found = backend.look(ids, acquire_timeout=1)
    assert [document.task_id for document in found] == ids[1:]


def test_a_broker_that_is_gone() -> None:
    """A broker that does not answer is a TransportError, with the permit back."""
    config = resolve(
        "clipper",
        "v1",
        env={},
        broker_url="amqp://me:canary@127.0.0.1:1//",
        result_backend="rpc://",
        io_timeout=1.0,
    )
    backend = RpcBackend(config.backend_key)
    for _ in range(2):
        with pytest.raises(TransportError) as caught:
            backend.look(["a"], acquire_timeout=1)
        assert "canary" not in str(caught.value)
    assert backend.statistics().commands.in_use == 0
