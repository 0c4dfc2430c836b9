"""What the clients log: nothing unless asked, each step if asked, and facts for machines."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from celery_worker import without_celery_variables
from conftest import MakeClient
from light_operator import LightOperator
from sandai.op.models import OperatorConnectionError, TaskTimeoutError
from tcp_proxy import HOST, Entry, TcpProxy, Way

LOGGERS = ("sandai.op.client", "sandai.op.aio")
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
CANARIES = {"secret-option": "canary-value"}
ARTIFACTS = [{"uri": "file:///canary/artifact.mp4", "slot": "video"}]
QUEUE = "normal.bench.v1"


class JsonLines(logging.Handler):
    """Keeps records as an application's JSON formatter would write them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        extras = {name: value for name, value in vars(record).items() if name not in STANDARD}
        line = {"text": record.getMessage(), "level": record.levelname, **extras}
        self.lines.append(json.loads(json.dumps(line)))

    def of(self, task_id: str) -> list[dict[str, Any]]:
        """Return what was said of a task."""
        return [line for line in self.lines if line["task_id"] == task_id]


@pytest.fixture
def log() -> Iterator[JsonLines]:
    """Listen to everything that the clients say."""
    handler = JsonLines()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield handler
    for name in LOGGERS:
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_each_step(database: str, make_client: MakeClient, log: JsonLines) -> None:
    """A request is told of from the queue to the deletion, with its facts as attributes."""
    client = make_client(database, debug=True, timeout=20)
    with LightOperator(database, delay=0.1):
        client.sync(ARTIFACTS, CANARIES)
    configured, *steps = log.lines
    assert configured["text"].startswith("configured: ")
    [task_id] = {step["task_id"] for step in steps}
    said = [step["text"].removeprefix(f"task {task_id}") for step in steps]
    assert {said[0], said[1].partition(" in ")[0]} == {
        ": waiting for its result for 20 s",
        " queued",
    }
    assert said[2].startswith(": SUCCESS, ")
    assert said[3] == ": its result is deleted"
    [queued] = [step for step in steps if "queued" in step["text"]]
    assert queued["queue"] == QUEUE
    assert 0 < queued["seconds"] < 10
    [arrived] = [step for step in steps if "SUCCESS" in step["text"]]
    assert (arrived["queue"], arrived["state"]) == (QUEUE, "SUCCESS")
    assert arrived["how"] in ("pushed", "found by a sweep", "looked up")
    for step in steps:
        assert (step["operator_name"], step["operator_version"]) == ("bench", "v1")
        assert step["level"] == "DEBUG"
    assert "canary" not in json.dumps(log.lines)


def test_how_a_result_came(database: str, make_client: MakeClient, log: JsonLines) -> None:
    """What is pushed, what a sweep finds and what a look finds are told apart."""
    client = make_client(database, debug=True, timeout=20)
    with LightOperator(database, delay=0.3):
        pushed = client.async_call([], {})
        pushed.get()
        assert client.attach(pushed.task_id).ready()
    with LightOperator(database, delay=0.3, publish=False):
        swept = client.async_call([], {})
        swept.get()
    assert [line["how"] for line in log.of(pushed.task_id) if "how" in line] == [
        "pushed",
        "looked up",
    ]
    assert [line["how"] for line in log.of(swept.task_id) if "how" in line] == ["found by a sweep"]


def test_handles(database: str, make_client: MakeClient, log: JsonLines) -> None:
    """A wait that runs out and a deletion that is asked for are told, of others' tasks too."""
    client = make_client(database, debug=True)
    handle = client.attach("some-id")
    with pytest.raises(TaskTimeoutError):
        handle.get(timeout=0.05)
    handle.forget()
    assert [line["text"] for line in log.of("some-id")] == [
        "task some-id: waiting for its result for 0.05 s",
        "task some-id: no result within 0.05 s; picked_up",
        "task some-id: its result is deleted",
    ]
    assert {line["queue"] for line in log.of("some-id")} == {None}


def test_batches(database: str, make_client: MakeClient, log: JsonLines) -> None:
    """Each task of a batch has its records."""
    client = make_client(database, debug=True, timeout=20)
    with LightOperator(database, delay=0.1):
        results = client.batch_sync_detailed([([], {"n": n}) for n in range(5)])
    for result in results:
        assert result.task_id is not None
        said = log.of(result.task_id)
        assert len(said) == 4
        assert {line["queue"] for line in said} == {QUEUE}


def test_not_queued(database: str, make_client: MakeClient, log: JsonLines) -> None:
    """A submission that failed says whether it may have been queued all the same."""
    with TcpProxy(HOST, int(database.rpartition(":")[2].partition("/")[0])) as proxy:
        client = make_client(proxy.url, debug=True, result_backend=database, io_timeout=0.3)
        assert client.ping()
        proxy.black_hole(Way.REPLIES)
        with pytest.raises(OperatorConnectionError) as caught:
            client.async_call(ARTIFACTS, CANARIES)
        proxy.cut()
        proxy.entry = Entry.REFUSED
        with pytest.raises(OperatorConnectionError):
            client.async_call([], {})
    perhaps, gone = [line for line in log.lines if line["task_id"] is not None]
    assert perhaps["task_id"] == caught.value.task_id
    assert f"perhaps queued in {QUEUE}" in perhaps["text"]
    assert f" not queued in {QUEUE}" in gone["text"]
    assert "canary" not in json.dumps(log.lines)


def test_nothing_unless_asked(database: str, make_client: MakeClient, log: JsonLines) -> None:
    """Without ``debug`` there is no record at any level, whoever listens."""
    client = make_client(database, timeout=20)
    with LightOperator(database):
        client.sync([], {})
        client.batch_sync_detailed([([], {})] * 3)
        assert client.probe().response_ok
        client.desc()
    assert log.lines == []


@pytest.mark.parametrize("debug", [False, True])
def test_quiet(database: str, debug: bool) -> None:
    """An application that configures no logging sees nothing of real calls on its stderr."""
    code = f"""
import asyncio, sys
from sandai.op.aio import AsyncOperatorClient
from sandai.op.client import OperatorClient

with OperatorClient("bench", "v1", sys.argv[1], timeout=20, debug={debug}) as client:
    client.sync([], {{}})
    client.batch_sync_detailed([([], {{}})] * 3)
    assert client.probe().response_ok
    client.async_call([], {{}})

async def main():
    async with AsyncOperatorClient("bench", "v1", sys.argv[1], timeout=20, debug={debug}) as client:
        await client.sync([], {{}})
        await client.batch_sync_detailed([([], {{}})] * 3)
        await client.async_call([], {{}})

asyncio.run(main())
"""
    with LightOperator(database):
        done = subprocess.run(
            [sys.executable, "-c", code, database],
            capture_output=True,
            text=True,
            timeout=40,
            env=without_celery_variables(os.environ),
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
