"""Broker and backend URLs: which are accepted, and what a Redis URL says."""

import codecs
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from celery.app.backends import BACKEND_ALIASES
from kombu.transport import TRANSPORT_ALIASES, get_transport_cls
from kombu.utils.url import url_to_parts

from sandai.op.models import ConfigurationError

from ._amqp_url import check_amqp_url, is_amqp
from ._memory import is_memory, world_of
from ._url_parts import HOW_TO_ENCODE, TRUE, scheme_of, tls_parameters

REDIS_SCHEMES = frozenset({"redis", "rediss", "redis+socket", "sentinel"})
_TRANSPORTS = frozenset(name.lower() for name in TRANSPORT_ALIASES)
#: Celery's database backend reads pickles, whatever the serializer.
_PICKLING = frozenset({"db", "database"})
_SOCKET_OPTIONS = ("socket_timeout", "socket_connect_timeout", "socket_keepalive")


def is_redis(url: str) -> bool:
    """Return whether our own Redis code serves the URL; Celery's serves the others."""
    return scheme_of(url) in REDIS_SCHEMES


def check_broker_url(setting: str, url: str, options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigurationError` unless the URL names a broker that kombu knows."""
    scheme = _checked_scheme(setting, url)
    if scheme in REDIS_SCHEMES:
        RedisAddress.parse(setting, url, options)
    elif (kind := scheme.partition("+")[0]) in REDIS_SCHEMES or kind not in _TRANSPORTS:
        known = ", ".join(sorted({*_TRANSPORTS, *REDIS_SCHEMES}))
        raise ConfigurationError(
            setting, url, f"the scheme {scheme!r} is no broker; known: {known}"
        )
    else:
        _check_transport(setting, url, kind)


def _check_transport(setting: str, url: str, kind: str) -> None:
    if is_amqp(url):
        check_amqp_url(setting, url)
    try:
        get_transport_cls(kind)
    except ImportError as error:
        reason = f"kombu's {kind} transport needs a library that is not installed: {error}"
        raise ConfigurationError(setting, url, reason) from error


def check_backend_url(
    setting: str, url: str, options: Mapping[str, Any], accepted: tuple[str, ...]
) -> None:
    """Raise :class:`ConfigurationError` unless the URL names a usable result backend."""
    scheme = _checked_scheme(setting, url)
    kind = scheme.partition("+")[0]
    if scheme in REDIS_SCHEMES:
        RedisAddress.parse(setting, url, options)
    elif kind in REDIS_SCHEMES or kind not in BACKEND_ALIASES or kind == "disabled":
        known = ", ".join(sorted({*BACKEND_ALIASES, *REDIS_SCHEMES} - {"disabled"}))
        raise ConfigurationError(
            setting, url, f"the scheme {scheme!r} is no result backend; known: {known}"
        )
    elif kind in _PICKLING and "pickle" not in accepted:
        raise ConfigurationError(
            setting,
            url,
            "Celery's database backend unpickles what it reads; list 'pickle' in "
            "accept_content to accept that",
        )


def _checked_scheme(setting: str, url: str) -> str:
    scheme = scheme_of(url)
    if not scheme:
        host = url.rpartition("@")[2]
        shown = url if host == url else f"**@{host}"
        raise ConfigurationError(setting, shown, f"has no scheme; write it like {_EXAMPLE}")
    if scheme in ("redis+cluster", "rediss+cluster"):
        raise ConfigurationError(
            setting,
            url,
            "Redis Cluster is not supported by Celery's transport; use one Redis or Sentinel",
        )
    return scheme


_EXAMPLE = "redis://host:6379/0"


@frozen
class RedisAddress:
    """
    Where and how to connect to a Redis, without any I/O.

    Follows kombu's rules for URLs and Celery's for ``ssl_*`` parameters. The
    certificate is verified unless ``ssl_cert_reqs`` says otherwise.
    """

    #: What holds the URL, for whoever must correct it.
    setting: str
    host: str
    port: int
    path: str | None
    db: int
    username: str | None
    password: str | None = field(repr=False)
    tls: Mapping[str, Any] | None
    socket_options: Mapping[str, Any]
    sentinels: tuple[tuple[str, int], ...]
    master_name: str | None
    sentinel_kwargs: Mapping[str, Any] = field(repr=False)
    key_prefix: str
    #: Of ``memory://``: which of those in this process.
    world: str | None = None

    @classmethod
    def parse(cls, setting: str, url: str, options: Mapping[str, Any]) -> "RedisAddress":
        """
        Read a URL and transport options.

        Raises :class:`ConfigurationError` that names *setting*.
        """
        if is_memory(url):
            return cls._in_process(setting, url, options)
        scheme = scheme_of(url)
        first, *others = url.split(";") if scheme == "sentinel" else [url]
        try:
            parts = url_to_parts(first.replace("redis+socket://", "socket://", 1))
            sentinels = tuple(
                (p.hostname or "localhost", p.port or 26379)
                for p in (url_to_parts(u.strip()) for u in (first, *others) if u.strip())
            )
        except ValueError:
            # What the parser says may quote a part of the password.
            raise ConfigurationError(setting, url, f"cannot be read; {HOW_TO_ENCODE}") from None
        for host in (parts.hostname, *(host for host, _ in sentinels)):
            _check_host(setting, url, host)
        query = {**parts.query}
        said = {**query, **options}
        socket_path = f"/{parts.path}" if scheme == "redis+socket" and parts.path else None
        if scheme == "redis+socket" and socket_path is None:
            raise ConfigurationError(
                setting, url, "has no path; write redis+socket:///path/to.sock"
            )
        db = query.get("virtual_host", query.get("db", 0 if socket_path else parts.path or 0))
        master_name = said.get("master_name")
        if scheme == "sentinel" and not master_name:
            raise ConfigurationError(
                setting, url, "a sentinel:// URL needs the transport option master_name"
            )
        return cls(
            setting=setting,
            host=parts.hostname or "localhost",
            port=parts.port or 6379,
            path=socket_path,
            db=_database(setting, url, db),
            username=parts.username,
            password=parts.password,
            tls=tls_parameters(setting, url, scheme, said),
            socket_options=_socket_options(setting, said),
            sentinels=sentinels if scheme == "sentinel" else (),
            master_name=master_name,
            sentinel_kwargs=dict(options.get("sentinel_kwargs", {})),
            key_prefix=str(options.get("global_keyprefix") or ""),
        )

    @classmethod
    def _in_process(cls, setting: str, url: str, options: Mapping[str, Any]) -> "RedisAddress":
        return cls(
            setting=setting,
            host="localhost",
            port=0,
            path=None,
            db=0,
            username=None,
            password=None,
            tls=tls_parameters(setting, url, scheme_of(url), options),
            socket_options=_socket_options(setting, options),
            sentinels=(),
            master_name=None,
            sentinel_kwargs={},
            key_prefix=str(options.get("global_keyprefix") or ""),
            world=world_of(setting, url),
        )

    @property
    def label(self) -> str:
        """The address for people: no user, no password."""
        if self.world is not None:
            return f"memory://{self.world}"
        if self.sentinels:
            sentinels = ", ".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"the master {self.master_name!r} of {sentinels}"
        return self.path or f"{self.host}:{self.port}/{self.db}"


# Not at the first call: a process that forks in the middle of an import, which another of its
# threads makes, has a child that waits for that for good.
codecs.lookup("idna")


def _check_host(setting: str, url: str, host: str | None) -> None:
    try:
        (host or "").encode("idna")  # as the resolver of names does
    except UnicodeError:
        raise ConfigurationError(setting, url, "the host can be no host's name") from None


def _database(setting: str, url: str, value: object) -> int:
    text = str(value).strip("/") or "0"
    if not text.isdecimal():
        raise ConfigurationError(
            setting, url, f"the database must be a whole number; {HOW_TO_ENCODE}"
        )
    return int(text)


def _socket_options(setting: str, said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _socket_option(setting, name, said[name])
        for name in _SOCKET_OPTIONS
        if said.get(name) is not None
    }


def _socket_option(setting: str, name: str, value: Any) -> Any:
    if name == "socket_keepalive":
        return value.lower() in TRUE if isinstance(value, str) else bool(value)
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        raise ConfigurationError(f"{setting}.{name}", value, "must be more than 0 seconds")
    return seconds
