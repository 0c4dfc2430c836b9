"""Configuration: argument, environment, default, in this order, or a typed error."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from sandai.op.models import ConfigurationError, InvalidPriorityError
from sandai.op.transport import DEFAULT_TIMEOUT, DEFAULT_URL, Config, resolve


class Case(NamedTuple):
    setting: str
    variable: str
    default: object
    text: str
    value: object
    explicit: object
    bad: str


CASES = [
    Case(
        "broker_url",
        "CELERY_BROKER_URL",
        DEFAULT_URL,
        "redis://env/1",
        "redis://env/1",
        "redis://argument/2",
        "nowhere",
    ),
    Case(
        "result_backend",
        "CELERY_RESULT_BACKEND",
        DEFAULT_URL,
        "redis://env/1",
        "redis://env/1",
        "redis://argument/2",
        "nowhere",
    ),
    Case("task_serializer", "CELERY_TASK_SERIALIZER", "msgpack", "json", "json", "msgpack", "bson"),
    Case(
        "result_serializer",
        "CELERY_RESULT_SERIALIZER",
        "json",
        "msgpack",
        "msgpack",
        "json",
        "bson",
    ),
    Case("auto_forget_result", "AUTO_FORGET_RESULT", True, "off", False, True, "perhaps"),
    Case("broker_pool_limit", "BROKER_POOL_LIMIT", 8, "3", 3, 5, "many"),
    Case("backend_pool_limit", "BACKEND_POOL_LIMIT", 8, "3", 3, 5, "0"),
    Case("backend_poll_concurrency", "BACKEND_POLL_CONCURRENCY", 4, "3", 3, 5, "-1"),
    Case("pool_acquire_timeout", "POOL_ACQUIRE_TIMEOUT", 30.0, "1.5", 1.5, 0.0, "soon"),
    Case(
        "shared_transport_scope",
        "SHARED_TRANSPORT_SCOPE",
        "operator",
        "process",
        "process",
        "operator",
        "world",
    ),
]
each_setting = pytest.mark.parametrize("case", CASES, ids=[case.setting for case in CASES])


def configured(env: Mapping[str, str] | None = None, /, **settings: Any) -> Config:
    """Return a configuration of the operator of these tests."""
    return resolve("clipper", "v1", env=env or {}, **settings)


@each_setting
def test_default(case: Case) -> None:
    """Without an argument and a variable the default holds."""
    assert getattr(configured(), case.setting) == case.default


@each_setting
def test_environment(case: Case) -> None:
    """A variable replaces the default."""
    config = configured({f"SANDAI_OPERATOR_{case.variable}": case.text})
    assert getattr(config, case.setting) == case.value


@each_setting
@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_is_unset(case: Case, empty: str) -> None:
    """An empty variable is an unset one."""
    config = configured({f"SANDAI_OPERATOR_{case.variable}": empty})
    assert getattr(config, case.setting) == case.default


@each_setting
def test_argument_wins(case: Case) -> None:
    """An explicit argument wins over the environment, however wrong that is."""
    env = {f"SANDAI_OPERATOR_{case.variable}": case.bad}
    config = configured(env, **{case.setting: case.explicit})
    assert getattr(config, case.setting) == case.explicit


@each_setting
def test_bad_variable_is_named(case: Case) -> None:
    """A value that cannot be used is an error that names the variable."""
    variable = f"SANDAI_OPERATOR_{case.variable}"
    with pytest.raises(ConfigurationError) as caught:
        configured({variable: case.bad})
    assert caught.value.setting == variable
    assert variable in str(caught.value)


@each_setting
def test_bad_argument_is_named(case: Case) -> None:
    """A value that cannot be used is an error that names the argument."""
    with pytest.raises(ConfigurationError) as caught:
        configured(**{case.setting: case.bad})
    assert caught.value.setting == case.setting


@pytest.mark.parametrize(
    ("text", "value"),
    [(text, True) for text in ("1", "true", "YES", "On")]
    + [(text, False) for text in ("0", "false", "NO", "Off")],
)
def test_booleans(text: str, value: bool) -> None:
    """Booleans are spelled as the contract says, in any case."""
    config = configured({"SANDAI_OPERATOR_AUTO_FORGET_RESULT": text})
    assert config.auto_forget_result is value


def test_explicit_broker_is_the_backend_too() -> None:
    """The environment's backend belongs to the environment's broker."""
    env = {
        "SANDAI_OPERATOR_CELERY_BROKER_URL": "redis://env/0",
        "SANDAI_OPERATOR_CELERY_RESULT_BACKEND": "redis://env/1",
    }
    assert configured(env, broker_url="redis://argument/3").result_backend == "redis://argument/3"
    assert configured(env).result_backend == "redis://env/1"
    both = configured(env, broker_url="redis://argument/3", result_backend="redis://argument/4")
    assert both.result_backend == "redis://argument/4"
    backend = configured(env, result_backend="redis://argument/4")
    assert (backend.broker_url, backend.result_backend) == ("redis://env/0", "redis://argument/4")


def test_environment_broker_is_the_backend_too() -> None:
    """A broker from the environment without a backend is also the backend."""
    env = {"SANDAI_OPERATOR_CELERY_BROKER_URL": "redis://env/7"}
    assert configured(env).result_backend == "redis://env/7"


def test_celery_variables_do_not_count() -> None:
    """Celery's own variables configure the host's Celery, not us."""
    env = {
        "CELERY_BROKER_URL": "redis://celery/1",
        "CELERY_RESULT_BACKEND": "redis://celery/2",
        "CELERY_TASK_SERIALIZER": "yaml",
    }
    assert configured(env) == configured()


def test_the_rest_of_the_defaults() -> None:
    """What has no variable has the contract's default."""
    config = configured()
    assert config.timeout == DEFAULT_TIMEOUT == 28800
    assert (config.debug, config.priority, config.cancel_key) == (False, "normal", None)
    assert config.accept_content == ("json", "msgpack")
    assert config.io_timeout == 5.0
    assert config.broker_transport_options == config.result_backend_transport_options == {}
    assert config.task_name == "sandai_operator.clipper.v1.process_task"
    assert config.queue_names["very_low"] == "very_low.clipper.v1"


@pytest.mark.parametrize("timeout", [None, 0, 0.0])
def test_no_timeout(timeout: float | None) -> None:
    """A client's timeout of ``None`` or 0 is no limit."""
    assert configured(timeout=timeout).timeout is None


BAD_ARGUMENTS: list[tuple[str, object]] = [
    ("timeout", -1),
    ("timeout", "10"),
    ("timeout", True),
    ("timeout", float("nan")),
    ("debug", "perhaps"),
    ("cancel_key", 7),
    ("broker_pool_limit", True),
    ("broker_pool_limit", 1.5),
    ("backend_pool_limit", 0),
    ("pool_acquire_timeout", -0.1),
    ("pool_acquire_timeout", float("inf")),
    ("io_timeout", 0),
    ("io_timeout", 1e12),
    ("pool_acquire_timeout", 1e300),
    ("io_timeout", None),
    ("task_serializer", "pickle"),
    ("result_serializer", "yaml"),
    ("accept_content", "json"),
    ("accept_content", []),
    ("accept_content", 5),
    ("accept_content", [["json"]]),
    ("accept_content", ["bson"]),
    ("broker_url", 5),
    ("broker_url", " "),
    ("broker_transport_options", [("a", 1)]),
    ("result_backend_transport_options", "a=1"),
]


@pytest.mark.parametrize(("setting", "value"), BAD_ARGUMENTS)
def test_bad_arguments(setting: str, value: object) -> None:
    """Every unusable argument is a typed error that names it."""
    with pytest.raises(ConfigurationError) as caught:
        configured(**{setting: value})
    assert caught.value.setting == setting


@pytest.mark.parametrize("part", ["operator_name", "operator_version"])
@pytest.mark.parametrize("value", ["", " ", "a b", " a", "a\n", None, 3])
def test_bad_names(part: str, value: Any) -> None:
    """An operator's name and version are parts of a queue's name."""
    names: dict[str, Any] = {"operator_name": "clipper", "operator_version": "v1", part: value}
    with pytest.raises(ConfigurationError) as caught:
        resolve(**names, env={})
    assert caught.value.setting == part


def test_bad_priority() -> None:
    """A priority that names no queue is its own error."""
    with pytest.raises(InvalidPriorityError):
        configured(priority="urgent")


def test_pickle_only_when_listed() -> None:
    """Pickle is refused unless the caller lists it."""
    config = configured(task_serializer="pickle", accept_content=["pickle", "json"])
    assert config.task_serializer == "pickle"


def test_content_types_are_names() -> None:
    """A content type stands for its serializer, once."""
    config = configured(accept_content=["application/json", "json", "application/x-msgpack"])
    assert config.accept_content == ("json", "msgpack")


def test_schemes_are_lower_case() -> None:
    """kombu and Celery look schemes up as written, so they are written in lower case."""
    config = configured(broker_url="AMQP://Host/V", result_backend="RPC://")
    assert (config.broker_url, config.result_backend) == ("amqp://Host/V", "rpc://")
    assert config.backend_key.broker == config.broker_key


def test_options_are_copied() -> None:
    """What a caller does to its options later changes nothing here."""
    options: dict[str, Any] = {"nested": {"list": [1, 2], "set": {3}}, "tuple": (4, [5])}
    config = configured(broker_transport_options=options)
    options["nested"]["list"].append(9)
    expected = {"nested": {"list": [1, 2], "set": {3}}, "tuple": (4, [5])}
    assert config.broker_transport_options == expected
    config.broker_transport_options["nested"]["list"].append(9)
    assert config.broker_transport_options == expected
    assert hash(config) == hash(configured(broker_transport_options=expected))


def test_unhashable_option_is_named() -> None:
    """An option that cannot be part of a key is named by its path."""
    with pytest.raises(ConfigurationError) as caught:
        configured(broker_transport_options={"a": {"b": bytearray(b"c")}})
    assert caught.value.setting == "broker_transport_options.a.b"
