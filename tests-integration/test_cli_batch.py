"""``sandai-op batch``: killed, interrupted, cut off from its servers, and resumed to the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_worker import CeleryWorker
from command_line import (
    COMMAND,
    ESCAPE,
    TIMEOUT,
    environment,
    sandai_op,
    started,
    terminal,
)
from ledger_operator import LedgerOperator
from light_operator import LightOperator
from local_rabbitmq import LocalRabbitMQ
from local_redis import HOST, LocalRedis
from tcp_proxy import Entry, TcpProxy
from watching import eventually, open_redis

BENCH, SCRIPTED = ("bench", "v1"), ("scripted", "v1")
LINES = 20_000
RESULTS = "celery-task-meta-*"


class Batch:
    """A batch's files."""

    def __init__(self, folder: Path, lines: int, **options: Any) -> None:
        self.tasks, self.results = folder / "tasks.jsonl", folder / "results.jsonl"
        self.ledger = folder / "results.jsonl.ledger"
        self.lines = lines
        self.operator = BENCH
        with self.tasks.open("w") as file:
            for n in range(lines):
                file.write(json.dumps({"options": {"n": n, **options}, "id": f"own-{n}"}) + "\n")

    def command(self, *more: object) -> tuple[object, ...]:
        """Return the arguments that do it."""
        return ("batch", *self.operator, self.tasks, "-o", self.results, "--timeout", "60", *more)

    def recorded(self) -> int:
        """Count the results so far."""
        return self.results.read_bytes().count(b"\n") if self.results.exists() else 0

    def sent(self) -> int:
        """Count the tasks that went out so far."""
        return self.ledger.read_bytes().count(b'["sent"') if self.ledger.exists() else 0

    def records(self) -> list[dict[str, Any]]:
        """Return the results."""
        return [json.loads(line) for line in self.results.read_bytes().splitlines()]

    def check(self) -> None:
        """Each line of the input has one result: its own."""
        records = self.records()
        assert len(records) == self.lines
        assert {record["line"] for record in records} == set(range(1, self.lines + 1))
        for record in records:
            assert record["success"], record
            assert record["results"]["n"] == record["line"] - 1
            assert record["id"] == f"own-{record['line'] - 1}"


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    """Run a Redis of the test's own."""
    with LocalRedis() as server:
        yield server


@pytest.mark.timeout(240)
def test_killed_three_times(server: LocalRedis, tmp_path: Path) -> None:
    """Nothing is lost; nothing that was recorded, or had been sent, is sent again."""
    batch = Batch(tmp_path, LINES)
    command = batch.command("--resume")
    with LedgerOperator(server.url, name="bench") as operator, open_redis(server.url) as redis:
        for killed_at in (1_000, LINES // 2, LINES * 9 // 10):
            process = started(*command, url=server.url)
            eventually(lambda n=killed_at: batch.recorded() >= n, within=TIMEOUT)  # type: ignore[misc]  # mypy and defaults
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            kept = batch.results.read_bytes()
            kept = kept[: kept.rfind(b"\n") + 1]
            assert batch.recorded() < LINES
        done = sandai_op(*command, "--json", url=server.url)
        assert done.code == 0, done.err
        assert done.document["succeeded"] == LINES
        assert batch.results.read_bytes().startswith(kept)
        batch.check()
        ids, numbers = operator.report()
        assert set(numbers) == set(range(LINES))
        assert set(numbers.values()) == {1}
        assert set(ids.values()) == {1}
        assert Counter(ids) == Counter(record["task_id"] for record in batch.records())
        assert batch.sent() == LINES
        assert not list(redis.scan_iter(RESULTS, count=1000))
    again = sandai_op(*command, "--json", url="redis://127.0.0.1:1/0")
    assert (again.code, again.document["succeeded"]) == (0, LINES)


@pytest.mark.parametrize(
    ("which", "code", "said"),
    [(signal.SIGTERM, 143, b"terminated"), (signal.SIGINT, 130, b"interrupted")],
)
def test_signals(
    server: LocalRedis, tmp_path: Path, which: signal.Signals, code: int, said: bytes
) -> None:
    """It ends at once, whatever is out, says how to go on, and can."""
    batch = Batch(tmp_path, 600, delay=0.2)
    command = batch.command("--max-in-flight", 50, "--resume")
    with LedgerOperator(server.url, name="bench") as operator:
        process = started(*command, url=server.url)
        eventually(lambda: batch.recorded() >= 100, within=TIMEOUT)
        began = time.monotonic()
        process.send_signal(which)
        _, err = process.communicate(timeout=TIMEOUT)
        assert time.monotonic() - began < 3
        assert process.returncode == code
        assert said in err
        assert b"--resume" in err
        assert batch.sent() > batch.recorded()  # what was out is waited for by the next one
        assert sandai_op(*command, url=server.url).code == 0
        batch.check()
        _, numbers = operator.report()
        assert set(numbers.values()) == {1}


@pytest.mark.parametrize("columns", [40, 100])
def test_interrupted_in_a_terminal(server: LocalRedis, tmp_path: Path, columns: int) -> None:
    """A bar while it runs, on one line, however narrow; after Ctrl-C a sentence."""
    batch = Batch(tmp_path, 2_000)
    command = batch.command("--max-in-flight", 50)
    with (
        LightOperator(server.url, delay=0.05),
        terminal(*command, url=server.url, columns=columns) as shown,
    ):
        shown.until_text(r"[1-9]\d*/2000 done, 0 failed")
        shown.until(lambda: batch.recorded() >= 500)
        shown.type("\x03")
        assert shown.end() == 130
    assert "interrupted: " in shown.text
    assert "--resume" in shown.text
    assert "Traceback" not in shown.text
    assert shown.cursor_is_shown
    bars = [line for line in shown.lines if "/2000 done" in line]
    assert len(bars) == 1, shown.text
    assert ("\u2501" in bars[0]) is (columns == 100)  # no room for a bar
    if columns == 100:
        assert " left" in " ".join(shown.seen)
    assert all(len(line) <= columns for line in shown.lines)


def test_without_a_terminal(server: LocalRedis, tmp_path: Path) -> None:
    """Neither bars nor escape codes; what a program reads is one document."""
    batch = Batch(tmp_path, 300)
    with LightOperator(server.url):
        done = sandai_op(*batch.command(), url=server.url)
        assert done.code == 0
        assert done.out == ""
        assert done.err == "done: 300 of 300 lines have a result, 0 of them a failure\n"
        assert ESCAPE not in done.err
        told = sandai_op(*batch.command("--force", "--json"), url=server.url)
        assert told.err == ""
        assert told.document["lines"] == told.document["succeeded"] == 300


def test_failures(redis_server: LocalRedis, scripted_worker: CeleryWorker, tmp_path: Path) -> None:
    """A real worker's: told by line, done again when asked, and the code says that there are."""
    tasks, results = tmp_path / "in", tmp_path / "out"
    tasks.write_text('{"options": {"n": 1}}\n{"options": {"do": "no such"}}\nnonsense\n')
    arguments = ("batch", "scripted", "v1", tasks, "-o", results, "--timeout", "20")
    assert sandai_op(*arguments, url=redis_server.url).code == 1
    first = {r["line"]: r for r in map(json.loads, results.read_text().splitlines())}
    assert first[1]["success"]
    assert first[2]["error"]["type"] == "TaskExecutionError"
    assert first[3]["error"]["path"] == "line 3"
    more = ("--resume", "--retry-failed", "--json")
    assert sandai_op(*arguments, *more, url=redis_server.url).document["failed"] == 2
    second = {r["line"]: r for r in map(json.loads, results.read_text().splitlines())}
    assert second[1] == first[1]
    assert second[2]["task_id"] != first[2]["task_id"]


def test_a_full_disk(server: LocalRedis, tmp_path: Path) -> None:
    """The batch stops where no more can be written, and goes on when there is room."""
    batch = Batch(tmp_path, 500)
    limited = ["bash", "-c", 'ulimit -f 32; exec "$@"', "-", *COMMAND]  # kilobytes
    with LedgerOperator(server.url, name="bench") as operator:
        done = subprocess.run(
            [*limited, *map(str, batch.command())],
            env=environment(server.url),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 74
        assert "File too large" in done.stderr
        assert "--resume" in done.stderr
        assert 0 < batch.recorded() < 500
        assert sandai_op(*batch.command("--resume"), url=server.url).code == 0
        batch.check()
        assert set(operator.report()[1].values()) == {1}


def test_a_broker_that_goes_away(server: LocalRedis, tmp_path: Path) -> None:
    """It is waited for: no line fails, and none is done twice."""
    batch = Batch(tmp_path, 3_000)
    with LedgerOperator(server.url, name="bench") as operator, TcpProxy(HOST, server.port) as proxy:
        process = started(*batch.command("--io-timeout", "1"), url=proxy.url)
        for _ in range(2):
            before = batch.recorded()
            eventually(lambda b=before: batch.recorded() >= b + 500, within=TIMEOUT)  # type: ignore[misc]  # mypy and defaults
            proxy.entry = Entry.REFUSED
            proxy.cut()
            time.sleep(1)  # an outage lasts
            proxy.heal()
            proxy.entry = Entry.OPEN
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0
        batch.check()
        _, numbers = operator.report()
        assert set(numbers.values()) == {1}


def test_a_broker_that_stays_away(server: LocalRedis, tmp_path: Path) -> None:
    """After a while the batch stops, without a failure, and is resumed."""
    batch = Batch(tmp_path, 50)
    dead = sandai_op(*batch.command("--patience", "0.5"), url="redis://u:pa55@127.0.0.1:1/0")
    assert dead.code == 3
    assert "Connection refused" in dead.err
    assert "pa55" not in dead.err
    assert batch.records() == []
    told = sandai_op(*batch.command("--patience", "0", "--resume", "--json"), url="redis://h:1/0")
    assert told.code == 3
    assert told.document["error"]["type"] == "OperatorConnectionError"
    with LightOperator(server.url):
        assert sandai_op(*batch.command("--resume"), url=server.url).code == 0
    batch.check()


def test_rabbitmq(rabbitmq: LocalRabbitMQ, server: LocalRedis, tmp_path: Path) -> None:
    """A broker that cannot tell what it has: what was sent is waited for, and not sent again."""
    batch = Batch(tmp_path, 400)
    batch.operator = SCRIPTED
    urls = ("--broker-url", rabbitmq.url, "--result-backend", server.url)
    command = batch.command("--resume", *urls, "--max-in-flight", 20)
    environment = {
        "SCRIPTED_OPERATOR_URL": server.url,
        "SCRIPTED_OPERATOR_BROKER_URL": rabbitmq.url,
        "SCRIPTED_OPERATOR_RESULT_BACKEND": server.url,
    }
    with CeleryWorker("scripted_operator", *SCRIPTED, environment=environment) as worker:
        process = started(*command)
        eventually(lambda: batch.recorded() >= 100, within=TIMEOUT)
        process.kill()
        process.communicate()
        told = sandai_op(*command, "--timeout", "12", "--json").document
        log = worker.log()
    assert batch.sent() == batch.recorded() == 400
    # In doubt is what was being sent at that moment: where it was not, it is a failure.
    assert told["failed"] <= 20
    assert {r["error"]["type"] for r in batch.records() if "error" in r} <= {"TaskTimeoutError"}
    received = Counter(re.findall(r"Task \S+\[(\S+)\] received", log))
    assert set(received.values()) == {1}
    assert len(received) == told["succeeded"]


def test_memory(server: LocalRedis, tmp_path: Path) -> None:
    """A long file takes hardly more than a short one."""
    peaks = []
    with LightOperator(server.url):
        for lines in (1_000, 30_000):
            folder = tmp_path / str(lines)
            folder.mkdir()
            batch = Batch(folder, lines, pad="x" * 500)
            process = started(*batch.command("--quiet"), url=server.url)
            assert process.stderr is not None
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0, process.stderr.read()
            process.stderr.close()
            assert batch.recorded() == lines
            peaks.append(usage.ru_maxrss)
    assert peaks[1] - peaks[0] < 12_000, peaks  # kilobytes; the file has 18 megabytes
