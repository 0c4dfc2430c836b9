"""Every kind of Redis URL, with a real server behind it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import trustme

from light_operator import LightOperator
from local_redis import HOST, LocalRedis
from sandai.op.aio import create_async_client
from sandai.op.client import ConfigurationError, OperatorConnectionError, create_client
from watching import eventually

PASSWORD = "p@ss/w#rd+%&?;,:"


def call(url: str, **kwargs: Any) -> dict[str, Any]:
    """Have both clients do one task each over a URL, and return the results."""
    with create_client("bench", "v1", broker_url=url, **kwargs) as client:
        assert client.ping()
        _, results = client.sync([], {"said": "hello"}, timeout=10)
    assert asyncio.run(async_call(url, **kwargs)) == results
    return results


async def async_call(url: str, **kwargs: Any) -> dict[str, Any]:
    """Have the asyncio client do a task."""
    async with create_async_client("bench", "v1", broker_url=url, **kwargs) as client:
        assert await client.ping()
        handle = await client.async_call([], {})
        await handle.get(timeout=10)
        assert await handle.ready()
        return (await client.sync([], {"said": "hello"}, timeout=10))[1]


def test_unix_socket(tmp_path: Path) -> None:
    """A ``redis+socket://`` URL reaches a server over its socket, in the database it names."""
    path = tmp_path / "redis.sock"
    with LocalRedis("--unixsocket", str(path)) as server:
        url = f"redis+socket://{path}?virtual_host=3"
        with LightOperator(server.url.removesuffix("0") + "3"):
            assert call(url) == {"said": "hello"}


def test_password_of_any_characters(tmp_path: Path) -> None:
    """A percent-encoded password, and an ACL user, are taken from the URL."""
    with LocalRedis("--requirepass", PASSWORD) as server:
        address = f"{HOST}:{server.port}/0"
        urls = [f"redis://:{quote(PASSWORD, safe='')}@{address}"]
        with redis.Redis(port=server.port, password=PASSWORD) as admin:
            admin.acl_setuser(
                "worker",
                True,
                passwords=[f"+{PASSWORD}"],
                keys=["*"],
                channels=["*"],
                commands=["+@all"],
            )
        urls.append(f"redis://worker:{quote(PASSWORD, safe='')}@{address}")
        with LightOperator(urls[0]):
            assert [call(url) for url in urls] == [{"said": "hello"}] * 2


def test_global_keyprefix(redis_server: LocalRedis, database: str) -> None:
    """Prefixes go before queues as kombu has it, and before results as Celery has it."""
    options = {"global_keyprefix": "app"}
    with (
        create_client(
            "bench",
            "v1",
            broker_url=database,
            broker_transport_options=options,
            result_backend_transport_options=options,
        ) as client,
        redis.Redis.from_url(database) as server,
    ):
        handle = client.async_call([], {})
        assert server.llen("appnormal.bench.v1") == 1
        document = f'{{"status": "SUCCESS", "result": {{"said": "hi"}}, "task_id": "{handle.id}"}}'
        server.set(f"app_celery-task-meta-{handle.id}", document)
        assert handle.get(timeout=5) == {"said": "hi"}


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[LocalRedis, int]]:
    """Run a Redis and a Sentinel that watches it as ``mymaster``."""
    with LocalRedis() as server, socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
        probe.close()
        configuration = tmp_path / "sentinel.conf"
        configuration.write_text(f"sentinel monitor mymaster {HOST} {server.port} 1\n")
        # LocalRedis knows where the binary is.
        command = [server._binary(), str(configuration), "--sentinel", "--port", str(port)]
        process = subprocess.Popen([*command, "--bind", HOST], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as asked:
                eventually(lambda: _answers(asked), within=5)
            yield server, port
        finally:
            process.terminate()
            process.wait(5)


def _answers(server: redis.Redis) -> bool:
    try:
        return bool(server.ping())
    except redis.ConnectionError:
        return False


def test_sentinel(sentinel: tuple[LocalRedis, int]) -> None:
    """A ``sentinel://`` URL finds the master, by any Sentinel of its list that answers."""
    server, port = sentinel
    options = {"master_name": "mymaster"}
    url = f"sentinel://{HOST}:1;sentinel://{HOST}:{port}"
    with LightOperator(server.url):
        results = call(
            url,
            broker_transport_options=options,
            result_backend_transport_options=options,
            io_timeout=1.0,
        )
    assert results == {"said": "hello"}
    with redis.Redis(port=port) as asked:
        names = [client["name"] for client in asked.client_list()]
    assert not [name for name in names if "sandai" in name]


def test_sentinel_needs_a_master_name() -> None:
    """Without ``master_name`` the error names the option."""
    with pytest.raises(ConfigurationError, match="master_name"):
        create_client("bench", "v1", broker_url="sentinel://localhost:26379")


def test_sentinel_that_knows_no_such_master(sentinel: tuple[LocalRedis, int]) -> None:
    """An unknown master is a connection error that names it, and nothing was queued."""
    options = {"master_name": "nobody"}
    with (
        create_client(
            "bench",
            "v1",
            broker_url=f"sentinel://{HOST}:{sentinel[1]}",
            broker_transport_options=options,
            result_backend_transport_options=options,
        ) as client,
        pytest.raises(OperatorConnectionError, match="nobody") as raised,
    ):
        client.async_call([], {})
    assert raised.value.task_id is None


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make a certificate authority of our own."""
    return trustme.CA()


@pytest.fixture
def tls_server(authority: trustme.CA, tmp_path: Path) -> Iterator[tuple[LocalRedis, int, Path]]:
    """Run a Redis with TLS; the embedded one has none."""
    issued = authority.issue_cert(HOST)
    files = {name: tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")}
    authority.cert_pem.write_to_path(str(files["ca.pem"]))
    issued.cert_chain_pems[0].write_to_path(str(files["cert.pem"]))
    issued.private_key_pem.write_to_path(str(files["key.pem"]))
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    arguments += [
        "--tls-cert-file",
        str(files["cert.pem"]),
        "--tls-key-file",
        str(files["key.pem"]),
    ]
    try:
        server = LocalRedis(*arguments, "--tls-ca-cert-file", str(files["ca.pem"])).__enter__()
    except RuntimeError as error:
        pytest.skip(f"this redis-server has no TLS: {str(error).splitlines()[-1]}")
    try:
        yield server, port, files["ca.pem"]
    finally:
        server.close()


def test_tls(tls_server: tuple[LocalRedis, int, Path]) -> None:
    """``rediss://`` verifies the server by the authority that the URL names."""
    server, port, ca = tls_server
    with LightOperator(server.url):
        url = f"rediss://{HOST}:{port}/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={ca}"
        assert call(url) == {"said": "hello"}


def test_tls_refuses_a_stranger(tls_server: tuple[LocalRedis, int, Path]) -> None:
    """A certificate of an unknown authority is refused, also when nothing says to verify."""
    _, port, _ = tls_server
    with (
        create_client("bench", "v1", broker_url=f"rediss://{HOST}:{port}/0") as client,
        pytest.raises(OperatorConnectionError, match="CERTIFICATE"),
    ):
        client.async_call([], {})


def test_tls_refuses_a_stranger_on_a_loop(tls_server: tuple[LocalRedis, int, Path]) -> None:
    """So does the asyncio client."""
    with pytest.raises(OperatorConnectionError, match="CERTIFICATE"):
        asyncio.run(async_call_alone(f"rediss://{HOST}:{tls_server[1]}/0"))


async def async_call_alone(url: str) -> None:
    """Have the asyncio client submit."""
    async with create_async_client("bench", "v1", broker_url=url) as client:
        await client.async_call([], {})


def test_sentinel_that_knows_no_such_master_on_a_loop(sentinel: tuple[LocalRedis, int]) -> None:
    """The asyncio client names an unknown master too, and leaves no lookup open."""
    options = {"master_name": "nobody"}

    async def main() -> None:
        async with create_async_client(
            "bench",
            "v1",
            broker_url=f"sentinel://{HOST}:{sentinel[1]}",
            broker_transport_options=options,
            result_backend_transport_options=options,
        ) as client:
            with pytest.raises(OperatorConnectionError, match="nobody") as raised:
                await client.async_call([], {})
            assert raised.value.task_id is None

    asyncio.run(main())
