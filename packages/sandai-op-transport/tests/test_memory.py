"""``memory://``: when it is ours, what its URL names, and who shares it."""

import subprocess
import sys

import pytest
from kombu.transport.memory import Transport as KombuMemory

from sandai.op.models import ConfigurationError
from sandai.op.transport import Config, RedisBackend, RedisBroker, Transport, client_app, resolve
from sandai.op.transport._kombu_broker import KombuBroker
from sandai.op.transport.testing import World, world


def configured(broker: str | None = None, backend: str | None = None, **env: str) -> Config:
    """Return a configuration with these URLs."""
    return resolve("clipper", "v1", env=env, broker_url=broker, result_backend=backend)


@pytest.mark.parametrize("backend", [None, "memory://", "MEMORY://", "memory:///"])
def test_both_in_memory_are_served_by_our_redis_code(backend: str | None) -> None:
    """Broker and backend on memory:// are the classes that serve a Redis."""
    config = configured("memory://", backend)
    assert config.in_process
    transport = Transport(config)
    try:
        assert isinstance(transport.broker, RedisBroker)
        assert isinstance(transport.backend, RedisBackend)
        assert transport.broker.connector.address.label == "memory://"
    finally:
        transport.release()


@pytest.mark.parametrize("backend", ["cache+memory://", "rpc://", "redis://localhost/0"])
def test_another_backend_leaves_the_broker_to_kombu(backend: str) -> None:
    """With results elsewhere memory:// is kombu's transport, as it always was."""
    config = configured("memory://", backend)
    assert not config.in_process
    transport = Transport(config)
    try:
        assert isinstance(transport.broker, KombuBroker)
    finally:
        transport.release()
    connection = client_app(config).connection_for_write()
    assert isinstance(connection.transport, KombuMemory)


def test_the_two_brokers_are_not_shared() -> None:
    """kombu's memory:// and ours have different keys, whatever else agrees."""
    ours, kombus = configured("memory://"), configured("memory://", "cache+memory://")
    assert ours.broker_key != kombus.broker_key


def test_the_environment_names_it_like_any_other() -> None:
    """One variable is enough: the backend is where the broker is."""
    config = configured(SANDAI_OPERATOR_CELERY_BROKER_URL="memory://tests")
    assert config.in_process
    assert config.result_backend == "memory://tests"


@pytest.mark.parametrize("broker", ["redis://localhost/0", "amqp://localhost"])
def test_results_alone_in_memory_are_refused(broker: str) -> None:
    """Results in memory and tasks elsewhere: the error says what to write."""
    with pytest.raises(ConfigurationError) as caught:
        configured(broker, "memory://tests")
    assert caught.value.setting == "result_backend"
    assert "write memory://tests for the broker, too" in caught.value.reason


def test_results_in_another_world_are_refused() -> None:
    """Two worlds for one client: the answers would be where nobody looks."""
    with pytest.raises(ConfigurationError, match=r"must be the broker's, which is memory://a"):
        configured("memory://a", "memory://b")


@pytest.mark.parametrize(
    "url", ["memory://me:secret@host", "memory://a?b=c", "memory://a b", "memory://a//b"]
)
def test_a_world_has_a_plain_name(url: str) -> None:
    """A user, options and the like mean nothing there: refused, not overlooked."""
    with pytest.raises(ConfigurationError, match="takes a name and no more") as caught:
        configured(url)
    assert caught.value.setting == "broker_url"
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        world(url)


def test_tls_belongs_to_other_urls() -> None:
    """Options for TLS are refused, as they are for redis://."""
    with pytest.raises(ConfigurationError, match="ssl_ca_certs"):
        resolve(
            "clipper",
            "v1",
            env={},
            broker_url="memory://",
            broker_transport_options={"ssl_ca_certs": "ca.pem"},
        )


def test_a_name_is_a_world() -> None:
    """One name is one world, however it is written; another is another."""
    assert world("memory://a") is world("MEMORY://a/")
    assert world("memory://a") is not world("memory://b")
    assert world("memory://a/1") is not world("memory://a")
    assert world() is world("memory:///")
    assert isinstance(world(), World)
    assert world("memory://a/1").url == "memory://a/1"


def test_a_world_of_another_scheme() -> None:
    """A world is asked for by its own scheme."""
    with pytest.raises(ConfigurationError, match="must be memory://"):
        world("redis://localhost")


def test_nothing_of_it_is_imported_without_such_a_url() -> None:
    """A process that uses Redis imports none of the testing package; memory:// all at once."""
    code = (
        "import sys; from sandai.op.transport import resolve, Transport\n"
        "name = 'sandai.op.transport.testing'\n"
        "resolve('op', 'v1', env={}, broker_url='redis://localhost/0')\n"
        "assert name not in sys.modules\n"
        "resolve('op', 'v1', env={}, broker_url='memory://')\n"
        "before = set(sys.modules)\n"
        "assert {name + '._server', name + '._control', name + '._operator'} <= before\n"
        "assert 'pytest' not in before\n"
        "config = resolve('op', 'v1', env={}, broker_url='memory://')\n"
        "transport = Transport(config)\n"
        "assert transport.backend.look(['id'], acquire_timeout=5) == []\n"
        "transport.release()\n"
        "assert not [m for m in set(sys.modules) - before if m.startswith('sandai')]\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=50)
