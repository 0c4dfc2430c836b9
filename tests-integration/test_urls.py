"""Every kind of Redis URL, with a real server behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from light_operator import LightOperator
from local_redis import HOST, LocalRedis
from sandai.op.aio import create_async_client
from sandai.op.client import create_client

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
