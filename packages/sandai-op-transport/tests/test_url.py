"""URLs: what each spelling means, and which are refused."""

import ssl
import sys
from typing import Any

import pytest

from sandai.op.models import ConfigurationError
from sandai.op.transport import Config, resolve
from sandai.op.transport._amqp_url import tls_options
from sandai.op.transport._url import RedisAddress, is_redis
from sandai.op.transport._url_parts import scheme_of


def parse(url: str, **options: Any) -> RedisAddress:
    """Read a Redis URL."""
    return RedisAddress.parse("broker_url", url, options)


def configured(**settings: Any) -> Config:
    """Return a configuration with these settings."""
    return resolve("clipper", "v1", env={}, **settings)


def refused(url: str, side: str = "broker_url", **settings: Any) -> ConfigurationError:
    """Return the error that a URL is refused with, on one side."""
    with pytest.raises(ConfigurationError) as caught:
        configured(
            **{"result_backend": "redis://", "broker_url": "redis://", side: url}, **settings
        )
    assert caught.value.setting == side
    return caught.value


@pytest.mark.parametrize(
    ("url", "host", "port", "db"),
    [
        ("redis://", "localhost", 6379, 0),
        ("redis://h", "h", 6379, 0),
        ("redis://h:1/", "h", 1, 0),
        ("redis://h:1/7", "h", 1, 7),
        ("REDIS://h:1/7", "h", 1, 7),
        ("redis://h//3", "h", 6379, 3),
        ("redis://h?db=4", "h", 6379, 4),
        ("redis://h/1?virtual_host=5", "h", 6379, 5),
        ("redis://[::1]:1/2", "::1", 1, 2),
    ],
)
def test_address(url: str, host: str, port: int, db: int) -> None:
    """Host, port and database are kombu's reading of the URL."""
    address = parse(url)
    assert (address.host, address.port, address.db, address.path) == (host, port, db, None)
    assert address.tls is None


@pytest.mark.parametrize(
    ("userinfo", "username", "password"),
    [
        ("", None, None),
        (":pw@", None, "pw"),
        ("user:pw@", "user", "pw"),
        ("user@", "user", None),
        ("u%40x:p%23%2B%40%2F%3A%25@", "u@x", "p#+@/:%"),
        (":p+w@", None, "p+w"),
        (":p@w@", None, "p@w"),
        (":%C3%A9@", None, "é"),
    ],
)
def test_credentials(userinfo: str, username: str | None, password: str | None) -> None:
    """User and password are percent-decoded; a plus is a plus."""
    address = parse(f"redis://{userinfo}host:1/2")
    assert (address.username, address.password) == (username, password)
    assert (address.host, address.port, address.db) == ("host", 1, 2)


@pytest.mark.parametrize("side", ["broker_url", "result_backend"])
@pytest.mark.parametrize(
    "url",
    [
        "redis://:ca#nary@host/0",
        "redis://:12/canary@host:6379/0",
        "redis://:ca/nary@host:6379/0",
        "redis://:ca?nary@host/0",
        "user:canary@host:6379/0",
        ":canary@host",
        "redis://:canary@host:port/0",
        "redis://:canary@host/database",
        "rediss+cluster://:canary@host/0",
        "nothing://:canary@host/0",
        "sentinel://:canary@host/0",
        "redis://:canary@host/0?ssl_ca_certs=ca.pem",
        "rediss://:canary@host/0?ssl_cert_reqs=perhaps",
        "redis+socket://:canary@",
    ],
)
def test_refused_without_telling_the_password(url: str, side: str) -> None:
    """An unusable URL is refused without showing any part of the password."""
    error = refused(url, side)
    for shown in (str(error), repr(error), repr(error.args)):
        assert "canary" not in shown
        assert "nary" not in shown


@pytest.mark.parametrize("side", ["broker_url", "result_backend"])
@pytest.mark.parametrize(
    "url", ["localhost", "localhost:6379/0", "//localhost", "redis:/localhost"]
)
def test_missing_scheme(url: str, side: str) -> None:
    """A URL without a scheme is refused with an example."""
    assert "redis://" in refused(url, side).reason


@pytest.mark.parametrize("side", ["broker_url", "result_backend"])
@pytest.mark.parametrize("url", ["http://h", "reddis://h", "redis+ssl://h", "sentinel+x://h"])
def test_unknown_scheme(url: str, side: str) -> None:
    """An unknown scheme is refused, and the known ones are told."""
    assert "sentinel" in refused(url, side).reason


@pytest.mark.parametrize("side", ["broker_url", "result_backend"])
@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "REDIS+CLUSTER"])
def test_cluster(scheme: str, side: str) -> None:
    """Redis Cluster, which Celery does not support, is refused early."""
    assert "Cluster" in refused(f"{scheme}://h", side).reason


@pytest.mark.parametrize("url", ["db+sqlite:///results.db", "database+postgresql://h/results"])
def test_database_backend(url: str) -> None:
    """Celery's database backend reads pickles: only for who accepts those."""
    assert "pickle" in refused(url, "result_backend").reason
    config = configured(
        broker_url="memory://", result_backend=url, accept_content=["json", "msgpack", "pickle"]
    )
    assert config.result_backend == url


def test_disabled_backend() -> None:
    """Without results there is nothing to wait for."""
    refused("disabled://", "result_backend")


@pytest.mark.parametrize(
    "url",
    ["amqp://h//", "amqps://h", "pyamqp://h", "memory://", "filesystem://", "AMQP://h//"],
)
def test_other_brokers(url: str) -> None:
    """kombu's transports are brokers."""
    config = configured(broker_url=url, result_backend="cache+memory://")
    assert not is_redis(config.broker_url)
    assert scheme_of(config.broker_url) == scheme_of(url)


def test_broker_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that cannot be loaded is told of when the client is made, not at a call."""
    monkeypatch.setitem(sys.modules, "kombu.transport.SQS", None)
    error = refused("sqs://me:canary@h")
    assert "library" in error.reason
    assert "canary" not in str(error)


@pytest.mark.parametrize("host", [".example.com", f"{'a' * 64}.example.com"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_host_that_no_resolver_takes(scheme: str, host: str) -> None:
    """A host that can be no host's name is refused; the resolver would raise UnicodeError."""
    assert "host" in refused(f"{scheme}://{host}:6379/0").reason


@pytest.mark.parametrize("url", ["rpc://", "cache+memory://", "file:///results", "mongodb://h/db"])
def test_other_backends(url: str) -> None:
    """Celery's backends are backends."""
    assert not is_redis(configured(broker_url="memory://", result_backend=url).result_backend)


def test_broker_that_is_no_backend() -> None:
    """A broker's URL that can be no backend asks for one."""
    with pytest.raises(ConfigurationError) as caught:
        configured(broker_url="amqp://h")
    assert caught.value.setting == "result_backend"


@pytest.mark.parametrize(
    ("spelling", "required"),
    [
        (spelling, required)
        for word, required in (
            ("required", ssl.CERT_REQUIRED),
            ("optional", ssl.CERT_OPTIONAL),
            ("none", ssl.CERT_NONE),
        )
        for spelling in (word, word.upper(), f"CERT_{word.upper()}", f"cert_{word}")
    ],
)
def test_certificate_spellings(spelling: str, required: ssl.VerifyMode) -> None:
    """Celery's and redis-py's spellings mean the same, in the URL and as an option."""
    in_url = parse(f"rediss://h?ssl_cert_reqs={spelling}").tls
    as_option = parse("rediss://h", ssl_cert_reqs=spelling).tls
    assert in_url == as_option
    assert in_url is not None
    assert in_url["ssl_cert_reqs"] == required
    assert in_url["ssl_check_hostname"] is (required == ssl.CERT_REQUIRED)


def test_tls_verifies_by_default() -> None:
    """Without a word about it the certificate and the host name are verified."""
    tls = parse("rediss://h").tls
    assert tls == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}


def test_tls_parameters() -> None:
    """Files and the host name check come from the URL."""
    tls = parse("rediss://h?ssl_ca_certs=%2Fca.pem&ssl_check_hostname=false").tls
    assert tls is not None
    assert (tls["ssl_ca_certs"], tls["ssl_check_hostname"]) == ("/ca.pem", False)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_cert_reqs"])
def test_tls_needs_rediss(option: str) -> None:
    """TLS settings without TLS would be a silent lack of it."""
    assert "rediss://" in refused("redis://h", broker_transport_options={option: "none"}).reason


@pytest.mark.parametrize("scheme", ["redis+socket", "REDIS+SOCKET"])
def test_unix_socket(scheme: str) -> None:
    """A socket's path is absolute; the database is a parameter."""
    config = configured(broker_url=f"{scheme}://:pw@/run/redis.sock?virtual_host=3")
    address = parse(config.broker_url)
    assert (address.path, address.db, address.password) == ("/run/redis.sock", 3, "pw")
    assert address.label == "/run/redis.sock"
    refused("redis+socket://")


def test_sentinels() -> None:
    """All the Sentinels of a list are known, with the master's name from the options."""
    url = "sentinel://:pw@one:1/2;sentinel://two:3; sentinel://three"
    address = parse(url, master_name="main", sentinel_kwargs={"password": "canary"})
    assert address.sentinels == (("one", 1), ("two", 3), ("three", 26379))
    assert (address.master_name, address.db, address.password) == ("main", 2, "pw")
    assert address.label == "the master 'main' of one:1, two:3, three:26379"
    assert address.sentinel_kwargs == {"password": "canary"}
    assert "canary" not in repr(address)
    assert "master_name" in refused("sentinel://one").reason


def test_socket_options() -> None:
    """Socket settings come from the URL or the options, which win."""
    address = parse("redis://h?socket_timeout=3&socket_keepalive=no", socket_timeout=2)
    assert address.socket_options == {"socket_timeout": 2.0, "socket_keepalive": False}
    assert parse("redis://h", socket_timeout=None).socket_options == {}


@pytest.mark.parametrize("value", ["soon", 0, -1, float("nan"), [1]])
def test_bad_socket_option(value: object) -> None:
    """A socket setting that cannot be used is named."""
    with pytest.raises(ConfigurationError) as caught:
        configured(broker_transport_options={"socket_timeout": value})
    assert caught.value.setting == "broker_url.socket_timeout"


def test_key_prefix() -> None:
    """The prefix of keys is the option that Celery has."""
    assert parse("redis://h").key_prefix == ""
    assert parse("redis://h", global_keyprefix="p").key_prefix == "p"


@pytest.mark.parametrize(
    "url",
    ["amqp://h:canary//", "amqp://u:canary#q@h//", "amqp://[::1//", "amqp://h//;amqp://h:canary"],
)
def test_an_amqp_url_that_cannot_be_read(url: str) -> None:
    """It is refused at once, without a word of what may be a password."""
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        configured(broker_url=url, result_backend="cache+memory://")
    assert caught.value.setting == "broker_url"
    assert "canary" not in caught.value.reason


@pytest.mark.parametrize(
    ("parameters", "given", "expected"),
    [
        ("", {}, {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "h"}),
        (
            "?ssl_ca_certs=/ca.pem&ssl_cert_reqs=CERT_REQUIRED",
            {},
            {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "h", "ca_certs": "/ca.pem"},
        ),
        ("?ssl_cert_reqs=none", {}, {"cert_reqs": ssl.CERT_NONE}),
        ("?ssl_check_hostname=false", {}, {"cert_reqs": ssl.CERT_REQUIRED}),
        ("", {"cert_reqs": ssl.CERT_NONE}, {"cert_reqs": ssl.CERT_NONE}),
        (
            "",
            {"server_hostname": "other"},
            {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "other"},
        ),
        ("", {"context": {}}, {"context": {}}),
        (";amqps://i//", {}, {"cert_reqs": ssl.CERT_REQUIRED}),
    ],
)
def test_whom_tls_trusts(parameters: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """By default a certificate that an authority signed for this host; what is said counts."""
    assert tls_options(f"amqps://u:p@h//{parameters}", given) == expected


def test_tls_parameters_are_checked() -> None:
    """A word that means nothing is refused before anything connects."""
    with pytest.raises(ConfigurationError, match="ssl_cert_reqs"):
        configured(broker_url="amqps://h//?ssl_cert_reqs=bogus", result_backend="cache+memory://")
