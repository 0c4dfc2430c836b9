"""Redis over TLS, with an authority of our own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from attrs import frozen

import scripted_operator
from celery_worker import CeleryWorker
from conftest import MakeClient
from light_operator import LightOperator
from local_redis import HOST, LocalRedis, free_port
from sandai.op.models import ConfigurationError, OperatorConnectionError, TaskTimeoutError
from watching import open_redis

PASSWORD = "p@ss/w#rd+%&?;,: "


@frozen
class TlsRedis:
    """A Redis that speaks TLS on a port of its own, and plainly on another."""

    server: LocalRedis
    port: int
    ca: Path
    plain_url: str

    def url(self, *, host: str = HOST, **query: object) -> str:
        """Return the TLS port's URL."""
        said = "&".join(f"{name}={value}" for name, value in query.items())
        userinfo = f":{quote(PASSWORD, safe='')}@"
        return f"rediss://{userinfo}{host}:{self.port}/0" + (f"?{said}" if said else "")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make a certificate authority."""
    return trustme.CA()


def launch(folder: Path, binary: str, authority: trustme.CA, name: str) -> Iterator[TlsRedis]:
    """Run a Redis whose certificate is for *name*."""
    issued = authority.issue_cert(name)
    files = {kind: folder / f"{kind}.pem" for kind in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    issued.cert_chain_pems[0].write_to_path(str(files["cert"]))
    issued.private_key_pem.write_to_path(str(files["key"]))
    port = free_port()
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no", "--requirepass", PASSWORD]
    for option, kind in (("cert-file", "cert"), ("key-file", "key"), ("ca-cert-file", "ca")):
        arguments += [f"--tls-{option}", str(files[kind])]
    with LocalRedis(*arguments, server=binary) as server:
        plain = server.url.replace("redis://", f"redis://:{quote(PASSWORD, safe='')}@")
        yield TlsRedis(server, port, files["ca"], plain)


@pytest.fixture
def tls(tls_binary: str, authority: trustme.CA, tmp_path: Path) -> Iterator[TlsRedis]:
    """Run one whose certificate is for its address."""
    yield from launch(tmp_path, tls_binary, authority, HOST)


@pytest.fixture
def misnamed(tls_binary: str, authority: trustme.CA, tmp_path: Path) -> Iterator[TlsRedis]:
    """Run one whose certificate is another host's."""
    yield from launch(tmp_path, tls_binary, authority, "redis.example.org")


@pytest.mark.parametrize("required", ["required", "CERT_REQUIRED", None])
def test_private_authority(tls: TlsRedis, make_client: MakeClient, required: str | None) -> None:
    """The server is verified by the authority that the URL names, in both spellings and unasked."""
    url = tls.url(ssl_ca_certs=tls.ca)
    if required is not None:
        url = tls.url(ssl_ca_certs=tls.ca, ssl_cert_reqs=required)
    # The operator's answers come over TLS, too.
    with LightOperator(tls.url(ssl_ca_certs=tls.ca)):
        client = make_client(url)
        assert client.ping()
        assert client.sync([], {"n": 1}, timeout=10) == ([], {"n": 1})
        results = client.batch_sync([([], {"n": n}) for n in range(500)], timeout=20)
        assert results == [([], {"n": n}) for n in range(500)]
        large = {"text": "x" * 2_000_000}
        assert client.sync([], large, timeout=20) == ([], large)
        [hub] = client.client.statistics()[1].readers  # type: ignore[attr-defined]  # each view has it
        assert hub.push_connects == 1


def test_a_worker_over_tls(tls: TlsRedis, make_client: MakeClient) -> None:
    """A Celery worker on the same URL takes the task and answers."""
    url = tls.url(ssl_ca_certs=tls.ca, ssl_cert_reqs="required")
    with CeleryWorker(
        "scripted_operator",
        scripted_operator.NAME,
        scripted_operator.VERSION,
        environment={"SCRIPTED_OPERATOR_URL": url},
    ):
        client = make_client(url, scripted_operator.NAME)
        assert client.sync([], {"n": 1}, timeout=20)[1]["kwargs"]["options"] == {"n": 1}
        assert client.desc()["doc"] == scripted_operator.DESCRIPTION["doc"]


@pytest.mark.parametrize(
    "query", [{}, {"ssl_cert_reqs": "CERT_REQUIRED"}], ids=["unasked", "asked"]
)
def test_unknown_authority(tls: TlsRedis, make_client: MakeClient, query: dict[str, str]) -> None:
    """A certificate of an unknown authority is refused, with what to write for a private one."""
    client = make_client(tls.url(**query))
    with pytest.raises(OperatorConnectionError, match=r"broker_url with \?ssl_ca_certs") as caught:
        client.async_call([], {})
    assert caught.value.task_id is None
    assert client.ping() is False
    with pytest.raises(OperatorConnectionError, match=r"result_backend with \?ssl_ca_certs"):
        client.attach("id").ready()
    with pytest.raises(TaskTimeoutError, match="ssl_ca_certs"):
        client.attach("id").get(timeout=0.3)
    with open_redis(tls.plain_url) as admin:
        assert admin.dbsize() == 0


def test_another_hosts_certificate(misnamed: TlsRedis, make_client: MakeClient) -> None:
    """A certificate for another host is refused, unless the check is switched off by name."""
    client = make_client(misnamed.url(ssl_ca_certs=misnamed.ca))
    with pytest.raises(OperatorConnectionError, match="one that the certificate is for"):
        client.async_call([], {})
    lax = make_client(misnamed.url(ssl_ca_certs=misnamed.ca, ssl_check_hostname="false"))
    lax.async_call([], {})
    blind = make_client(misnamed.url(ssl_cert_reqs="none"))
    blind.async_call([], {})
    with open_redis(misnamed.plain_url) as admin:
        assert admin.llen("normal.bench.v1") == 2


def test_no_tls_there(tls: TlsRedis, make_client: MakeClient) -> None:
    """``rediss://`` to a plain port, and ``redis://`` to a TLS port, are errors in time."""
    plain_port = tls.url(ssl_ca_certs=tls.ca).replace(f":{tls.port}/", f":{tls.server.port}/")
    tls_port = tls.plain_url.replace(f":{tls.server.port}/", f":{tls.port}/")
    for url in (plain_port, tls_port):
        client = make_client(url, io_timeout=1.0)
        with pytest.raises(OperatorConnectionError) as caught:
            client.async_call([], {})
        assert caught.value.task_id is None


def test_misspelt(make_client: MakeClient) -> None:
    """A requirement that does not exist is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="ssl_cert_reqs"):
        make_client("rediss://localhost/0?ssl_cert_reqs=REQUIERED")


def test_the_servers_are_what_they_should_be(tls_binary: str) -> None:
    """The Redis of these tests has TLS, and is version 7 or later."""
    said = subprocess.run([tls_binary, "--version"], capture_output=True, text=True, check=True)
    assert int(said.stdout.split("v=")[1].split(".")[0]) >= 7
