"""A canary password through everything that a person or a log may read."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from light_operator import LightOperator
from local_redis import LocalRedis
from sandai.op.client import OperatorClient
from sandai.op.models import OperatorError
from sandai.op.transport import statistics
from watching import eventually

CANARY = "c4nary"
PASSWORD = f"{CANARY}/p:a@s#s%{CANARY}"
WRONG = f"{CANARY}-wrong"


@pytest.fixture
def guarded() -> Iterator[LocalRedis]:
    """A Redis that requires the canary."""
    with LocalRedis("--requirepass", PASSWORD) as server:
        yield server


def with_password(server: LocalRedis, password: str) -> str:
    """Return the server's URL with a password."""
    return server.url.replace("redis://", f"redis://:{quote(password, safe='')}@")


class Readable:
    """Everything that could be read, to be searched for the canary."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._texts: list[str] = []

    def add(self, *values: object) -> None:
        """Add what a value shows."""
        for value in values:
            self._texts += [str(value), repr(value), f"{value!s:.2000}"]

    def add_error(self, error: BaseException) -> None:
        """Add an error: its texts and fields, its copies, its whole chain as a traceback."""
        self._texts.append("".join(traceback.format_exception(error)))
        seen: BaseException | None = error
        while seen is not None:
            self.add(seen, seen.args, vars(seen), getattr(seen, "__notes__", ()))
            hidden = seen.__suppress_context__
            seen = seen.__cause__ or (None if hidden else seen.__context__)
        if isinstance(error, OperatorError):
            self.add(copy.copy(error), pickle.loads(pickle.dumps(error)))

    def attempt(self, call: Callable[[], Any]) -> None:
        """Add what a call returns or raises."""
        try:
            self.add(call())
        except Exception as error:
            self.add_error(error)

    def add_client(self, client: OperatorClient) -> None:
        """Add what a client and what it holds show."""
        self.add(client, client.config, client.config.broker_key, client.config.backend_key)
        self.add(client.statistics(), statistics(), client.celery_app, client.celery_app.backend)
        self.add(client.celery_app.backend.as_uri(), client.attach("some-task"))
        self.add(statistics().brokers.keys(), statistics().backends.keys())

    def check(self, *, at_least: int) -> None:
        """Fail if the canary is anywhere."""
        for record in self._caplog.records:
            self._texts += [record.getMessage(), repr(vars(record))]
        found = [text for text in self._texts if CANARY in text or quote(CANARY) in text]
        assert not found, found[0]
        assert len(self._texts) >= at_least


@pytest.fixture
def readable(caplog: pytest.LogCaptureFixture) -> Readable:
    """Collect, with every logger at DEBUG."""
    caplog.set_level(logging.DEBUG)
    return Readable(caplog)


def use_everything(client: OperatorClient, readable: Readable) -> None:
    """Call all that a client has, and keep what it says."""
    mixed: list[Any] = [([], {}), ("bad", {})]
    calls: list[Callable[[], Any]] = [
        lambda: client.sync([], {}, timeout=0.5),
        lambda: client.async_call([], {}, timeout=0.5).get(timeout=0.5),
        lambda: client.attach("some-task").ready(),
        lambda: client.attach("some-task").get(timeout=0.3),
        lambda: client.attach("some-task").forget(),
        lambda: client.desc,
        lambda: client.batch_submit(mixed, timeout=0.5),
        lambda: client.batch_sync_detailed([([], {})], timeout=0.5),
        client.ping,
        lambda: client.probe(timeout=0.5),
        lambda: client.sync([], {}, priority="urgent"),
        lambda: client.sync([], {}, timeout=-1),
    ]
    for call in calls:
        readable.attempt(call)
    for result in client.batch_sync_detailed([([], {})], timeout=0.2):
        if result.error is not None:
            readable.add_error(result.error)
    readable.add_client(client)


def settings(url: str) -> dict[str, Any]:
    """Return a client's arguments."""
    return {
        "broker_url": url,
        "timeout": 1,
        "debug": True,
        "pool_acquire_timeout": 0.5,
        "io_timeout": 0.3,
    }


def test_working(guarded: LocalRedis, readable: Readable) -> None:
    """A client that works shows no password."""
    url = with_password(guarded, PASSWORD)
    with LightOperator(url), OperatorClient("bench", "v1", **settings(url)) as client:
        assert client.sync([], {"n": 1}) == ([], {"n": 1})
        use_everything(client, readable)
        readable.attempt(lambda: client.attach("some-task").revoke())
        readable.attempt(lambda: client.celery_app.control.ping(timeout=0.1))
    readable.attempt(lambda: client.sync([], {}))
    readable.check(at_least=50)


def test_wrong_password(guarded: LocalRedis, readable: Readable) -> None:
    """A client with a wrong password shows neither it nor the right one."""
    with OperatorClient("bench", "v1", **settings(with_password(guarded, WRONG))) as client:
        use_everything(client, readable)
        readable.attempt(lambda: client.attach("some-task").revoke())
    readable.check(at_least=50)


def test_going_away(guarded: LocalRedis, readable: Readable) -> None:
    """A client whose Redis goes away, in waits and at once, shows no password."""
    with OperatorClient("bench", "v1", **settings(with_password(guarded, PASSWORD))) as client:
        assert client.ping()
        handle = client.async_call([], {})
        guarded.stop()
        readable.attempt(lambda: handle.get(timeout=0.5))
        use_everything(client, readable)
    readable.check(at_least=50)


def test_frozen(guarded: LocalRedis, readable: Readable) -> None:
    """A client whose Redis is frozen, the fate of its tasks unknown, shows no password."""
    with OperatorClient("bench", "v1", **settings(with_password(guarded, PASSWORD))) as client:
        assert client.ping()
        guarded.pause()
        use_everything(client, readable)
        guarded.resume()
    readable.check(at_least=50)


def test_other_brokers(readable: Readable) -> None:
    """Brokers and backends that kombu and Celery serve show no password either."""
    password = quote(PASSWORD, safe="")
    for broker, backend in (
        (f"amqp://user:{password}@127.0.0.1:1//", "rpc://"),
        (f"amqp://user:{password}@127.0.0.1:1//", f"redis://:{password}@127.0.0.1:1/0"),
        (f"redis://user:{password}@127.0.0.1:1/0", f"rediss://:{password}@127.0.0.1:1/0"),
    ):
        given = settings(broker) | {"result_backend": backend}
        with OperatorClient("bench", "v1", **given) as client:
            readable.attempt(lambda client=client: client.sync([], {}))  # type: ignore[misc]  # bound at once
            readable.attempt(lambda client=client: client.probe())  # type: ignore[misc]  # the same
            readable.attempt(lambda client=client: client.attach("id").ready())  # type: ignore[misc]  # the same
            readable.add_client(client)
    readable.check(at_least=30)


WRONG_SETTINGS: list[dict[str, Any]] = [
    {"broker_url": f"nothing://user:{WRONG}@host/0"},
    {"broker_url": f"redis://:{WRONG}@host:port/0"},
    {"broker_url": f"redis://:{WRONG}@host/database"},
    {"broker_url": f"redis://:{WRONG}@host/0?ssl_cert_reqs=none"},
    {"broker_url": f"redis://:{PASSWORD}@host/0"},  # not quoted, as people paste it
    {"broker_url": f"user:{WRONG}@host:6379"},
    {"broker_url": f"redis+cluster://:{WRONG}@host"},
    {"broker_url": f"sentinel://:{WRONG}@host:1;sentinel://:{WRONG}@host:2"},
    {"broker_url": "redis://h", "result_backend": f"db+postgresql://user:{WRONG}@host/db"},
    {"broker_url": "redis://h", "broker_transport_options": [f"password={WRONG}"]},
    {
        "broker_url": "sentinel://host",
        "broker_transport_options": {"sentinel_kwargs": {"password": WRONG}},
    },
    {"broker_url": "redis://h", "broker_transport_options": {"password": {WRONG: object()}}},
]


@pytest.mark.parametrize("given", WRONG_SETTINGS, ids=range(len(WRONG_SETTINGS)))
def test_settings_that_cannot_be_used(readable: Readable, given: dict[str, Any]) -> None:
    """An error that tells of a setting masks the password in it."""

    def make() -> None:
        with OperatorClient("bench", "v1", **given) as client:
            readable.add_client(client)

    readable.attempt(make)
    readable.check(at_least=3)


def test_the_environment(readable: Readable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds for URLs in environment variables."""
    for name in ("BROKER_URL", "RESULT_BACKEND"):
        monkeypatch.setenv(f"SANDAI_OPERATOR_CELERY_{name}", f"nothing://user:{WRONG}@host/0")
        readable.attempt(lambda: OperatorClient("bench", "v1"))
        monkeypatch.delenv(f"SANDAI_OPERATOR_CELERY_{name}")
    readable.check(at_least=6)


def test_a_dropped_client(guarded: LocalRedis, readable: Readable) -> None:
    """The warning about a client that was never closed shows no password."""
    client = OperatorClient("bench", "v1", **settings(with_password(guarded, PASSWORD)))
    client.ping()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
    readable.add(*(warning.message for warning in caught))
    eventually(lambda: not statistics().brokers, within=2)
    readable.check(at_least=3)
