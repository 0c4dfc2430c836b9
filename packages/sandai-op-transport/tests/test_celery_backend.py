"""Celery's own backends, asked within the budget, read as Redis results are."""

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest
from celery import Celery

from sandai.op.models import (
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidResultFormatError,
    TaskExecutionError,
)
from sandai.op.transport import TransportError, resolve
from sandai.op.transport._celery_backend import CeleryBackend


def opened(url: str, **settings: Any) -> CeleryBackend:
    """Return a backend at a URL."""
    config = resolve(
        "clipper", "v1", env={}, broker_url="memory://", result_backend=url, **settings
    )
    return CeleryBackend(config.backend_key)


@pytest.fixture(params=["cache+memory://", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a backend without a server."""
    return f"file://{tmp_path}" if request.param == "file" else str(request.param)


def store(url: str, task_id: str, result: Any, state: str = "SUCCESS", **conf: Any) -> None:
    """Store a result as a worker's Celery does."""
    app = Celery("worker", broker="memory://", backend=url, set_as_current=False)
    app.conf.update(conf)
    app.backend.store_result(task_id, result, state)
    app.close()


def store_bytes(backend: CeleryBackend, task_id: str, payload: bytes) -> None:
    """Store any bytes for a task."""
    own = backend._own()
    own.set(own.get_key_for_task(task_id), payload)


def test_look_and_delete(url: str) -> None:
    """What is stored is found, what is deleted is gone, the rest is not mentioned."""
    backend = opened(url)
    assert backend.look(["a", "b"], acquire_timeout=0) == []
    store(url, "a", {"status": "success"})
    [document] = backend.look(["a", "b"], acquire_timeout=0)
    assert (document.task_id, document.reply()) == ("a", {"status": "success"})
    backend.delete(["a", "b"], acquire_timeout=0)
    assert backend.look(["a", "b"], acquire_timeout=0) == []
    assert backend.statistics().commands.in_use == 0
    backend.close()


def test_states(url: str) -> None:
    """States come as they are, and a newer one replaces an older."""
    backend = opened(url)
    store(url, "state", {"done": 3}, "PROGRESS")
    [document] = backend.look(["state"], acquire_timeout=0)
    assert (document.state, document.ready) == ("PROGRESS", False)
    store(url, "state", {"done": 9})
    [document] = backend.look(["state"], acquire_timeout=0)
    assert document.ready
    backend.delete(["state"], acquire_timeout=0)


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_other_serializer(url: str, serializer: str) -> None:
    """A result in another accepted serializer than the configured one is read too."""
    backend = opened(url, result_serializer=serializer)
    meta = {"status": "SUCCESS", "result": [1]}
    store_bytes(backend, "one", json.dumps(meta).encode())
    store_bytes(backend, "other", msgpack.packb(meta))
    documents = backend.look(["one", "other"], acquire_timeout=0)
    assert [document.reply() for document in documents] == [[1], [1]]
    backend.delete(["one", "other"], acquire_timeout=0)


def test_undecodable(url: str) -> None:
    """Truncated, pickled or foreign bytes are their own task's error; the others are read."""
    backend = opened(url)
    bad = {
        "truncated": b'{"status": "SUCC',
        "pickled": pickle.dumps({"status": "SUCCESS", "result": 1}),
        "list": b"[]",
        "odd": b'{"status": 7}',
    }
    for task_id, payload in bad.items():
        store_bytes(backend, task_id, payload)
    store(url, "good", 1)
    documents = backend.look([*bad, "good"], acquire_timeout=0)
    assert documents[-1].reply() == 1
    for document, payload in zip(documents, bad.values(), strict=False):
        assert isinstance(document.failure, InvalidResultFormatError)
        assert document.failure.result == payload
    backend.delete([*bad, "good"], acquire_timeout=0)


def test_no_class_is_imported(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that names a function of this machine is told in words."""
    monkeypatch.setattr("os.system", lambda command: pytest.fail(f"ran {command}"))
    backend = opened(url)
    failure = {"exc_type": "system", "exc_module": "os", "exc_message": ["true"]}
    payload = json.dumps({"status": "FAILURE", "result": failure}).encode()
    store_bytes(backend, "failed", payload)
    [document] = backend.look(["failed"], acquire_timeout=0)
    assert isinstance(document.failure, TaskExecutionError)
    assert backend._own().exception_to_python(failure) is failure
    backend.delete(["failed"], acquire_timeout=0)


def test_stored_failure(url: str) -> None:
    """What Celery itself stores for an exception is an execution error."""
    backend = opened(url)
    store(url, "raised", ValueError("bad clip"), "FAILURE")
    [document] = backend.look(["raised"], acquire_timeout=0)
    assert isinstance(document.failure, TaskExecutionError)
    assert document.failure.error_details["exception_type"] == "ValueError"
    assert document.failure.error_message == "bad clip"
    backend.delete(["raised"], acquire_timeout=0)


def test_budget() -> None:
    """No more calls at once than the smaller of the two limits."""
    for pool, concurrency, expected in ((8, 4, 4), (2, 4, 2), (1, 1, 1)):
        backend = opened(
            "cache+memory://", backend_pool_limit=pool, backend_poll_concurrency=concurrency
        )
        assert backend.limiter.limit == expected
        assert backend.statistics().push is None


def test_no_slot() -> None:
    """A look without a slot in time is told so, and gives nothing back that it has not."""
    backend = opened("cache+memory://", backend_pool_limit=1)
    inside, leave = threading.Event(), threading.Event()

    def occupy() -> None:
        inside.set()
        leave.wait(10)

    thread = threading.Thread(target=backend._guarded, args=(occupy, 1))
    thread.start()
    inside.wait(10)
    with pytest.raises(ClientPoolTimeoutError):
        backend.look(["a"], acquire_timeout=0)
    leave.set()
    thread.join()
    assert backend.look(["a"], acquire_timeout=0) == []


def test_failure_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that fails is a typed error, with its permit back and its password hidden."""
    backend = opened("cache+memory://me:canary@127.0.0.1:1/db")

    class Failing:
        def get_task_meta(self, task_id: str) -> Any:
            raise RuntimeError("cache+memory://me:canary@127.0.0.1:1/db does not answer")

    monkeypatch.setattr(backend, "_own", Failing)
    with pytest.raises(TransportError) as caught:
        backend.look(["a"], acquire_timeout=0)
    assert "canary" not in f"{caught.value!s} {caught.value!r}"
    assert backend.statistics().commands.in_use == 0


def test_readers_are_made_once_and_closed() -> None:
    """Each owner has one reader; the last release closes them all."""

    class Reading:
        closed = 0

        def close(self) -> None:
            self.closed += 1

        def statistics(self) -> str:
            return "statistics"

    class Owner:
        pass

    backend, owner, other = opened("cache+memory://"), Owner(), Owner()
    reader = backend.reader(owner, Reading)
    assert backend.reader(owner, Reading) is reader
    assert backend.reader(other, Reading) is not reader
    assert backend.statistics().readers == ("statistics", "statistics")
    backend.close()
    assert isinstance(reader, Reading)
    assert reader.closed == 1


@pytest.mark.parametrize("url", ["mongodb://me:canary@h/db", "cache+memcached://me:canary@h/"])
def test_backend_whose_library_is_missing(url: str) -> None:
    """A backend that cannot be built is told of when the client is made, not in a wait."""
    with pytest.raises(ConfigurationError) as caught:
        opened(url)
    assert caught.value.setting == "result_backend"
    assert caught.value.reason  # Celery's own words, which differ
    assert "canary" not in f"{caught.value!s} {caught.value!r}"
