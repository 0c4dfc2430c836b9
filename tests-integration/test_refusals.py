"""A Redis that answers and refuses: wrong password, wrong server, wrong database, no memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from conftest import MakeClient
from light_operator import LightOperator
from local_redis import LocalRedis
from sandai.op.models import OperatorConnectionError, TaskTimeoutError
from watching import eventually, open_redis

PASSWORD = "open-sesame"


@pytest.fixture
def guarded(redis_binary: str) -> Iterator[LocalRedis]:
    """Run a Redis that wants a password."""
    with LocalRedis("--requirepass", PASSWORD, server=redis_binary) as server:
        yield server


def with_password(server: LocalRedis, password: str) -> str:
    """Return the server's URL with a password, or with none."""
    userinfo = f":{password}@" if password else ""
    return server.url.replace("redis://", f"redis://{userinfo}")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as a warning, or worse."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("password", ["", "wrong"], ids=["NOAUTH", "WRONGPASS"])
def test_wrong_broker_password(guarded: LocalRedis, make_client: MakeClient, password: str) -> None:
    """A submission says at once that it is the password, and where that stands."""
    client = make_client(with_password(guarded, password))
    began = time.monotonic()
    for call in (client.sync, client.async_call):
        with pytest.raises(OperatorConnectionError, match=r"password in broker_url") as caught:
            call([], {})
        assert caught.value.task_id is None
    assert client.ping() is False
    assert "password in broker_url" in str(client.probe().error)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("password", ["", "wrong"], ids=["NOAUTH", "WRONGPASS"])
def test_wrong_backend_password(
    redis_server: LocalRedis,
    database: str,
    guarded: LocalRedis,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    password: str,
) -> None:
    """A wait goes on to its timeout; the log, once, and its error say that it is the password."""
    client = make_client(database, result_backend=with_password(guarded, password))
    handle = client.async_call([], {})
    with pytest.raises(OperatorConnectionError, match=r"password in result_backend"):
        handle.ready()
    with pytest.raises(TaskTimeoutError, match=r"password in result_backend") as caught:
        handle.get(timeout=0.5)
    assert "password in result_backend" in str(caught.value.__cause__)
    assert "password in result_backend" in str(client.probe(timeout=0.5).error)
    [said] = warnings(caplog)
    assert "password in result_backend" in said
    assert PASSWORD not in said


def test_a_password_that_is_put_right(
    redis_server: LocalRedis,
    database: str,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A wait outlives a backend that comes back and wants a password, until that is put right."""
    with LocalRedis() as backend:
        url = with_password(backend, PASSWORD)
        with open_redis(backend.url) as admin:
            admin.config_set("requirepass", PASSWORD)
        client = make_client(database, result_backend=url, timeout=20)
        handle = client.async_call([], {})
        assert not handle.ready()
        backend.stop()
        with pytest.raises(TaskTimeoutError):
            handle.get(timeout=0.3)
        backend.start()
        with open_redis(backend.url) as admin:
            admin.config_set("requirepass", "another")
        with pytest.raises(TaskTimeoutError, match=r"password in result_backend"):
            # One outage is told of as that of one hub: it goes on, and turns out to be this.
            handle.get(timeout=2.5)
        with open_redis(with_password(backend, "another")) as admin:
            admin.config_set("requirepass", PASSWORD)
            document = f'{{"status": "SUCCESS", "result": {{}}, "task_id": "{handle.task_id}"}}'
            admin.execute_command("AUTH", PASSWORD)
            admin.set(f"celery-task-meta-{handle.task_id}", document)
            assert handle.get(timeout=5) == {}
    said = [text for text in warnings(caplog) if text.startswith("reading results")]
    assert len(said) == 3
    assert "password" not in said[0]
    assert "password in result_backend" in said[1]
    assert "well again" in said[2]


def test_wrong_database(redis_binary: str, make_client: MakeClient) -> None:
    """A database that the server does not have is told as such."""
    with LocalRedis("--databases", "2", server=redis_binary) as server:
        client = make_client(server.url.removesuffix("0") + "2")
        with pytest.raises(OperatorConnectionError, match=r"database in broker_url") as caught:
            client.sync([], {})
        assert caught.value.task_id is None
        with pytest.raises(OperatorConnectionError, match=r"database in result_backend"):
            client.attach("id").ready()


@pytest.mark.parametrize("slots", ["all", "none"])
def test_cluster(redis_binary: str, make_client: MakeClient, slots: str) -> None:
    """A node of a Redis Cluster is refused before anything is queued, with a sentence."""
    with LocalRedis("--cluster-enabled", "yes", server=redis_binary) as server:
        with open_redis(server.url) as admin:
            if slots == "all":
                # It would take a task; no worker could take it out.
                admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
                eventually(lambda: "cluster_state:ok" in told(admin), within=10)
            client = make_client(server.url)
            for _ in range(2):
                with pytest.raises(OperatorConnectionError, match="is a Redis Cluster") as caught:
                    client.sync([], {})
                assert caught.value.task_id is None
                assert "use one Redis, or Sentinel" in str(caught.value)
            assert client.ping() is False
            with pytest.raises(OperatorConnectionError, match="is a Redis Cluster"):
                client.attach("id").ready()
            with pytest.raises(TaskTimeoutError, match="is a Redis Cluster"):
                client.attach("id").get(timeout=0.3)
            assert admin.dbsize() == 0
        other = make_client(server.url.removesuffix("0") + "1")
        with pytest.raises(OperatorConnectionError, match="is a Redis Cluster"):
            other.async_call([], {})


def told(admin: Any) -> str:
    """Return what a node says of its cluster."""
    said = admin.execute_command("CLUSTER", "INFO")
    return said.decode() if isinstance(said, bytes) else str(said)


def test_full_broker(redis_binary: str, make_client: MakeClient) -> None:
    """A full broker takes no task and says so; results that it has are read and deleted."""
    with LocalRedis(server=redis_binary) as server, open_redis(server.url) as admin:
        client = make_client(server.url)
        with LightOperator(server.url):
            handles = [client.async_call([], {"n": n}) for n in range(3)]
            for handle in handles:
                eventually(handle.ready, within=5)
        submissions = client.batch_submit([([], {"n": n}) for n in range(3)])
        admin.config_set("maxmemory", "1")
        with pytest.raises(OperatorConnectionError, match=r"OOM|OutOfMemory") as caught:
            client.async_call([], {})
        assert caught.value.task_id is None
        assert handles[0].get(timeout=5)["results"] == {"n": 0}
        for handle in handles:
            handle.forget()
        assert admin.keys("celery-task-meta-*") == []
        assert len(submissions) == admin.llen("normal.bench.v1") == 3
        admin.config_set("maxmemory", "0")
        assert client.ping()


def test_full_backend(
    redis_server: LocalRedis, database: str, redis_binary: str, make_client: MakeClient
) -> None:
    """A full backend takes no result: waits go on, and have theirs once there is room."""
    with LocalRedis(server=redis_binary) as backend, open_redis(backend.url) as admin:
        admin.config_set("maxmemory", "1")
        client = make_client(database, result_backend=backend.url, timeout=20)
        handle = client.async_call([], {})
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            admin.set(f"celery-task-meta-{handle.task_id}", "{}")
        with pytest.raises(TaskTimeoutError) as caught:
            handle.get(timeout=0.3)
        assert caught.value.__cause__ is None
        admin.config_set("maxmemory", "0")
        document = f'{{"status": "SUCCESS", "result": {{}}, "task_id": "{handle.task_id}"}}'
        admin.set(f"celery-task-meta-{handle.task_id}", document)
        assert handle.get(timeout=5) == {}
