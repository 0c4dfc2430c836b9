"""What a Redis server says of itself, and what it lets us do."""

import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from socket import create_connection, gaierror
from typing import Any

from redis.exceptions import RedisError, ResponseError

from sandai.op.transport import (
    Command,
    RedisConnection,
    RedisConnector,
    TransportError,
    read_reply,
)

from ._findings import Finding, failed, ok, unknown, warning, within

#: Seconds that a trip may take, and that clocks may differ, before it is worth a word.
_SLOW, _APART = 0.1, 1.0
_FULL = 0.9
#: Days for which a certificate should last.
_LASTING = 14


class Redis:
    """One server, as broker, backend or both."""

    def __init__(self, subject: str, connector: RedisConnector) -> None:
        self.subject = subject
        self.connector = connector
        self.connection: RedisConnection | None = None

    def check(self) -> Iterator[Finding]:
        """Check step by step; after one that fails there is nothing more to check."""
        address = self.connector.address
        places = address.sentinels or ((address.host, address.port),)
        if address.path is None:
            reached = [found for found in map(self._reach, places) if found is not None]
            yield from reached
            if len(reached) == len(places):
                return
        try:
            self.connection = self.connector.open()
        except TransportError as error:
            yield failed(self.subject, str(error))
            return
        yield ok(self.subject, f"{address.label} is reachable")
        yield self._tls()
        yield from self._said()

    def close(self) -> None:
        """Hang up."""
        if self.connection is not None:
            self.connection.disconnect()

    def ask(self, *commands: Command) -> list[Any]:
        """Return the replies; an error reply as a value. Raises :class:`TransportError`."""
        assert self.connection is not None
        try:
            self.connection.send_packed_command(self.connection.pack_commands(commands))
            return [read_reply(self.connection) for _ in commands]
        except (RedisError, OSError) as error:
            self.connection.disconnect()
            raise self.connector.failure(error, maybe_done=True) from error

    def _reach(self, place: tuple[str, int]) -> Finding | None:
        host, port = place
        limit, setting = self.connector.io_timeout, self.connector.address.setting
        try:
            within(limit, lambda: create_connection(place, limit).close())
        except gaierror:
            said = f"the name {host} cannot be resolved"
            return failed(self.subject, said, f"correct the host in {setting}, or the DNS")
        except TimeoutError:
            return failed(
                self.subject,
                f"{host}:{port} does not answer within {limit:g} s",
                f"check the address in {setting}, and the firewalls between",
            )
        except OSError as error:
            said = f"{host}:{port}: {error.strerror or error}"
            return failed(self.subject, said, f"start the server there, or correct {setting}")
        return None

    def _tls(self) -> Finding:
        subject = f"{self.subject} TLS"
        sock = getattr(self.connection, "_sock", None)
        if not isinstance(sock, ssl.SSLSocket):
            return ok(subject, "none: what is sent can be read on the way")
        certificate = sock.getpeercert()
        if not certificate:
            return warning(
                subject,
                f"{sock.version()}, and the certificate is not verified",
                "take ssl_cert_reqs=none away, and name the authority with ssl_ca_certs",
            )
        until = datetime.fromtimestamp(
            ssl.cert_time_to_seconds(str(certificate["notAfter"])), tz=UTC
        )
        said = f"{sock.version()}, certificate until {until:%Y-%m-%d}"
        if (until - datetime.now(UTC)).days < _LASTING:
            return warning(subject, said, "renew the certificate")
        return ok(subject, said)

    def _said(self) -> Iterator[Finding]:
        began = time.perf_counter()
        try:
            [pong] = self.ask(("PING",))
            trip = time.perf_counter() - began
            role, info, clock = self.ask(("ROLE",), ("INFO",), ("TIME",))
        except TransportError as error:
            yield failed(self.subject, str(error))
            return
        if isinstance(pong, ResponseError):
            yield failed(self.subject, str(self.connector.failure(pong, maybe_done=False)))
            return
        said = f"answers in {1000 * trip:.1f} ms"
        slow = "the network or the server is slow: see redis-cli --latency, and SLOWLOG"
        yield warning(self.subject, said, slow) if trip > _SLOW else ok(self.subject, said)
        yield self._role(role)
        yield self._memory(info)
        yield self._clock(clock)

    def _role(self, role: Any) -> Finding:
        subject = f"{self.subject} role"
        if not isinstance(role, list) or not role:
            return unknown(subject, "ROLE is not permitted")
        name = role[0].decode() if isinstance(role[0], bytes) else str(role[0])
        if name == "master":
            return ok(subject, "master")
        return failed(
            subject,
            f"{name}: it takes no writes",
            f"have {self.connector.address.setting} lead to the master, or use sentinel://",
        )

    def _memory(self, info: Any) -> Finding:
        subject = f"{self.subject} memory"
        told = _fields(info)
        try:
            used, most = int(told["used_memory"]), int(told.get("maxmemory", 0))
        except (KeyError, ValueError):
            return unknown(subject, "INFO is not permitted")
        said = f"{used / 2**20:.0f} MiB in use" + (f" of {most / 2**20:.0f}" if most else "")
        said = f"Redis {told.get('redis_version', '?')}, {said}"
        if most and used > _FULL * most:
            return warning(subject, said, "raise maxmemory before tasks are refused (OOM)")
        policy = told.get("maxmemory_policy", "noeviction")
        if most and policy != "noeviction":
            return warning(
                subject,
                f"{said}, maxmemory-policy {policy}",
                "set noeviction: tasks and results may be dropped otherwise",
            )
        return ok(subject, said)

    def _clock(self, clock: Any) -> Finding:
        subject = f"{self.subject} clock"
        try:
            apart = abs(int(clock[0]) + int(clock[1]) / 1e6 - time.time())
        except (TypeError, ValueError, IndexError):
            return unknown(subject, "TIME is not permitted")
        said = f"{apart:.1f} s from this machine's"
        if apart > _APART:
            return warning(subject, said, "deadlines are compared with clocks: set them by NTP")
        return ok(subject, said)


def _fields(info: Any) -> dict[str, str]:
    if not isinstance(info, str | bytes):
        return {}
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else info
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in pairs}
