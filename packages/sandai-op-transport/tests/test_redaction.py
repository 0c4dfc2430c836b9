"""A canary password shows up nowhere that a person or a log may read."""

import logging
import pickle
import traceback
from typing import Any

import pytest

from sandai.op.models import ConfigurationError
from sandai.op.transport import (
    BackendKey,
    BrokerKey,
    Config,
    RedisBackend,
    RedisBroker,
    TaskBuilder,
    TaskControls,
    Transport,
    TransportError,
    client_app,
    resolve,
    statistics,
)

CANARY = "canary-7"
BROKER_URL = f"redis://me:{CANARY}@127.0.0.1:1/0"
BACKEND_URL = f"redis://:{CANARY}@127.0.0.1:1/1"
SENTINELS = f"sentinel://:{CANARY}@127.0.0.1:1;sentinel://:{CANARY}@127.0.0.1:2"


def configured(**settings: Any) -> Config:
    """Return a configuration full of secrets."""
    secret: dict[str, Any] = {
        "broker_url": BROKER_URL,
        "result_backend": BACKEND_URL,
        "broker_transport_options": {"sentinel_kwargs": {"password": CANARY}},
        "result_backend_transport_options": {"sentinel_kwargs": {"password": CANARY}},
        "io_timeout": 1.0,
    }
    return resolve("clipper", "v1", env={}, **secret | settings)


def assert_hidden(*values: object) -> None:
    """Check that neither repr nor str of values tell the secret."""
    for value in values:
        assert CANARY not in repr(value), type(value)
        assert CANARY not in str(value), type(value)


def test_configuration() -> None:
    """A configuration and its keys hide passwords, and keep them."""
    config = configured()
    assert_hidden(config, config.broker_key, config.backend_key)
    assert CANARY in config.broker_url
    rpc = configured(result_backend="rpc://").backend_key
    assert isinstance(rpc, BackendKey)
    assert isinstance(rpc.broker, BrokerKey)
    assert_hidden(rpc)


def test_objects() -> None:
    """What is built from a configuration hides passwords."""
    config = configured()
    transport = Transport(config)
    broker, backend = transport.broker, transport.backend
    assert isinstance(broker, RedisBroker)
    assert isinstance(backend, RedisBackend)
    assert_hidden(transport, broker, backend, broker.limiter, broker.messages)
    assert_hidden(broker.connector, broker.connector.address, backend.connector)
    assert_hidden(statistics(), broker.statistics(), backend.statistics(), client_app(config))
    message = TaskBuilder(config).task(broker.messages, "", [], {}, TaskControls())
    assert_hidden(message)
    transport.release()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "broker_url": SENTINELS,
            "result_backend": SENTINELS,
            "broker_transport_options": {"master_name": "main"},
            "result_backend_transport_options": {"master_name": "main"},
        },
        {"broker_url": f"amqp://me:{CANARY}@127.0.0.1:1//"},
        {"broker_url": f"rediss://:{CANARY}@127.0.0.1:1/0"},
    ],
    ids=["redis", "sentinel", "amqp", "rediss"],
)
def test_failures(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Neither errors nor their tracebacks nor logs tell the password of who cannot be reached."""
    config = configured(**settings)
    transport = Transport(config)
    message = TaskBuilder(config).task(transport.broker.messages, "", [], {}, TaskControls())
    with caplog.at_level(logging.DEBUG):
        [outcome] = transport.broker.send([message], acquire_timeout=1)
        assert isinstance(outcome, TransportError)
        told = TaskBuilder(config).failure(message, outcome)
        assert_hidden(outcome, told, *outcome.args, vars(outcome))
        assert pickle.loads(pickle.dumps(told)).reason == outcome.reason
        with pytest.raises(TransportError) as caught:
            transport.backend.look(["id"], acquire_timeout=1)
        with pytest.raises(TransportError) as pinged:
            transport.broker.ping(message, acquire_timeout=0.5, timeout=0.5)
    for error in (outcome, caught.value, pinged.value):
        assert CANARY not in "".join(traceback.format_exception(error))
    assert CANARY not in caplog.text
    transport.release()


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_url": f"nothing://:{CANARY}@host"},
        {"result_backend": f"me:{CANARY}@host"},
        {"broker_transport_options": [("password", CANARY)]},
        {"broker_transport_options": {"password": bytearray(CANARY.encode())}},
        {"broker_transport_options": f"password={CANARY}"},
        {"broker_url": f"db+sqlite://:{CANARY}@host"},
        {"result_backend": f"db+postgresql://:{CANARY}@host"},
    ],
)
def test_configuration_errors(settings: dict[str, Any]) -> None:
    """A setting that cannot be used is refused without telling its password."""
    with pytest.raises(ConfigurationError) as caught:
        configured(**settings)
    assert_hidden(caught.value, caught.value.value, caught.value.args)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_caller_gets_the_cause() -> None:
    """The caller's error keeps where the failure came from, and an id only in doubt."""
    source = OSError("reset")
    error = TransportError(f"it broke: redis://:{CANARY}@h", True)
    error.__cause__ = source
    told = error.for_operator("clipper", "v1", "id")
    assert (told.task_id, told.__cause__) == ("id", source)
    assert_hidden(told)
    certain = TransportError("refused")
    assert certain.for_operator("clipper", "v1", "id").task_id is None
    assert certain.for_operator("clipper", "v1").__cause__ is certain
