"""The Celery app of ours: configured by us alone, touching nothing of the host's."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace

import celery
import kombu.pools
import pytest
from celery import Celery
from kombu.transport import memory

from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import OperatorApp, client_app, resolve
from sandai.op.transport._app import broker_app

CONFIG = resolve(
    "clipper",
    "v1",
    env={},
    broker_url="memory://",
    result_backend="cache+memory://",
    task_serializer="json",
    priority="low",
)


def test_settings() -> None:
    """A client's app has the client's settings."""
    conf = client_app(CONFIG).conf
    assert (conf.broker_url, conf.result_backend) == ("memory://", "cache+memory://")
    assert (conf.task_serializer, conf.result_serializer) == ("json", "json")
    assert conf.task_default_queue == "low.clipper.v1"
    assert list(conf.accept_content) == ["json", "msgpack"]


def test_never_the_current_app() -> None:
    """Neither making nor using our app makes it the host's current one."""
    before = celery.current_app._get_current_object()
    app = client_app(CONFIG)
    app.send_task("name", queue="queue")
    app.finalize()
    assert app.backend is not None
    assert celery.current_app._get_current_object() is before
    assert celery.current_app._get_current_object() is not app


@pytest.mark.parametrize("loaded", [False, True])
def test_celery_variables_are_ignored(monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    """The host's ``CELERY_*`` variables do not reach our app, whenever they are set."""

    def set_variables() -> None:
        for name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL", "RESULT_BACKEND"):
            monkeypatch.setenv(f"CELERY_{name}", "redis://celery/9")

    if not loaded:
        set_variables()
    app: OperatorApp = broker_app(CONFIG.broker_key)
    app.conf.update(result_backend="cache+memory://")
    assert app.conf.task_serializer == "json"
    set_variables()
    assert app.conf.broker_url == "memory://"
    assert app.conf.broker_read_url == app.conf.broker_write_url == "memory://"
    assert app.conf.result_backend == "cache+memory://"
    assert app.connection_for_write().transport_cls == "memory"
    assert app.connection_for_read().transport_cls == "memory"


def test_kombu_pools_are_untouched() -> None:
    """Nothing goes through kombu's process-wide pools, and their limit stays."""
    limit = kombu.pools.get_limit()
    connections, producers = dict(kombu.pools.connections), dict(kombu.pools.producers)
    app = client_app(CONFIG)
    app.send_task("name", queue="queue")
    app.control.broadcast("ping")
    with app.connection_or_acquire() as connection, app.producer_or_acquire() as producer:
        assert connection.transport.driver_type == "memory"
        assert producer.connection is connection
    assert kombu.pools.get_limit() == limit
    assert dict(kombu.pools.connections) == connections
    assert dict(kombu.pools.producers) == producers


def test_celerys_own_calls_are_permitted() -> None:
    """Celery's calls on our app open connections under a permit, and close them."""
    permits: list[str] = []

    class Permit:
        def __enter__(self) -> None:
            permits.append("taken")

        def __exit__(self, *_: object) -> None:
            permits.append("given back")

    app = client_app(CONFIG, permit=Permit)
    app.send_task("name", queue="permitted")
    assert permits == ["taken", "given back"]
    assert memory.Channel.queues["permitted"].get(timeout=5)
    with app.pool.acquire_channel() as (connection, channel):
        assert channel is connection.default_channel
        assert permits == ["taken", "given back", "taken"]
    assert permits[-1] == "given back"


def test_given_connection_and_producer_are_used() -> None:
    """A connection or a producer that is handed in is used without another permit."""
    app = client_app(CONFIG, permit=lambda: pytest.fail("asked for a permit"))
    given = object()
    with app.connection_or_acquire(given) as connection, app.producer_or_acquire(given) as producer:
        assert connection is producer is given


def test_made_backend() -> None:
    """The backend is the one that the client makes."""
    made = SimpleNamespace(thread_safe=True)
    apps = []

    def make_backend(app: Celery) -> object:
        apps.append(app)
        return made

    app = client_app(CONFIG, make_backend=make_backend)
    assert app.backend is made
    assert apps == [app]


def test_one_reply_queue() -> None:
    """Any thread may wait for any task."""
    app = client_app(CONFIG)
    assert app.thread_oid == app.oid


def test_import_configures_nothing() -> None:
    """Importing makes no app current, configures no logging and reads no environment."""
    code = (
        "import logging, threading, os\n"
        "os.environ['SANDAI_OPERATOR_BROKER_POOL_LIMIT'] = 'nonsense'\n"
        "import sandai.op.transport\n"
        "import celery._state as state\n"
        "assert state.default_app is None and state._tls.current_app is None\n"
        "assert not logging.getLogger().handlers\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_one_call_holds_one_permit() -> None:
    """However deep Celery nests, a call on the app has one permit, and gives it back."""
    permits: list[int] = []

    @contextmanager
    def permit() -> Iterator[None]:
        permits.append(len(permits))
        yield

    app = client_app(CONFIG, permit=permit)
    app.control.broadcast("ping")
    assert permits == [0]
    with app.connection_or_acquire() as outer, app.producer_or_acquire() as producer:
        assert producer.connection is outer
    app.send_task("name", queue="queue")
    assert permits == [0, 1, 2]


def test_no_permit_is_told_as_such() -> None:
    """Where there is no permit the caller hears so; it is no failure of the broker."""

    def permit() -> AbstractContextManager[None]:
        raise ClientPoolTimeoutError("broker", 1.0, 1)

    app = client_app(CONFIG, permit=permit)
    with pytest.raises(ClientPoolTimeoutError):
        app.control.broadcast("ping")
    with pytest.raises(ClientPoolTimeoutError):
        app.send_task("name", queue="queue")


def test_settings_show_no_password() -> None:
    """Neither repr nor str of the app's settings has a password."""
    config = resolve(
        "clipper",
        "v1",
        env={},
        broker_url="sentinel://:canary@localhost",
        result_backend="redis://:canary@localhost",
        broker_transport_options={"master_name": "m", "sentinel_kwargs": {"password": "canary"}},
    )
    conf = client_app(config).conf
    assert "sentinel" in repr(conf)
    assert "canary" not in f"{conf!r} {conf!s}"
