"""A batch that dies at any byte it writes: nothing is lost, nothing is done twice."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandai.op.client import (
    BatchTaskResult,
    OperatorClient,
    OperatorConnectionError,
    SubmittedTask,
    TaskExecutionError,
    TaskTimeoutError,
)
from sandai.op.client.cli import _batch_run, _journal
from sandai.op.client.cli._batch_run import BatchRun, Plan, Stopped
from sandai.op.client.cli._journal import Files
from sandai.op.client.cli._ledger import Header
from sandai.op.client.cli._source import wanted_lines


class Killed(BaseException):
    """The process ends here."""


class Disk:
    """Writes until its bytes are used up, and then half a write."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.written = 0

    def write(self, opened: int, data: bytes) -> None:
        room = len(data) if self.limit is None else self.limit - self.written
        self.written += os.write(opened, data[: max(0, room)])
        if room < len(data):
            raise Killed


class Server:
    """Takes each id once, executes, and keeps results until they are deleted."""

    def __init__(self, *, takes_once: bool = True) -> None:
        self.takes_once = takes_once
        self.executed: Counter[str] = Counter()
        self.lines: Counter[int] = Counter()
        self.results: dict[str, dict[str, Any]] = {}
        self.forgotten: list[str] = []
        #: How many more submissions it refuses, and whether it is told that nothing was queued.
        self.refusals = 0
        self.doubtful = False
        #: How many more deletions it refuses.
        self.undeletable = 0

    def submit(self, task_id: str, options: dict[str, Any]) -> None:
        if self.executed[task_id] and self.takes_once:
            return
        self.executed[task_id] += 1
        self.lines[options["n"]] += 1
        self.results[task_id] = options


class FakeClient:
    """As much of a client as a batch needs; takes some tasks, then answers, the last one first."""

    timeout: float | None = 60.0

    def __init__(self, server: Server, together: int = 3) -> None:
        self.server = server
        self._together = together

    def map(self, tasks: Iterator[Any], *, max_in_flight: int) -> Iterator[BatchTaskResult]:
        taken: list[tuple[int, str, dict[str, Any]]] = []
        failures: list[BatchTaskResult] = []
        more = True
        index = 0
        while more:
            while len(taken) < self._together:
                try:
                    _, options, task_id = next(tasks)
                except StopIteration:
                    more = False
                    break
                if self.server.refusals:
                    self.server.refusals -= 1
                    known = task_id if self.server.doubtful else None
                    error = OperatorConnectionError("o", "v", "away", known)
                    failures.append(BatchTaskResult(index, known, False, error=error))
                    index += 1
                    break
                taken.append((index, task_id, options))
                index += 1
            for _, task_id, options in taken:
                self.server.submit(task_id, options)
            yield from failures
            failures = []
            while taken:
                number, task_id, _ = taken.pop()
                yield self._result(number, task_id)

    def as_completed(
        self, submissions: Iterable[SubmittedTask], *, timeout: float | None
    ) -> Iterator[BatchTaskResult]:
        for submission in submissions:
            task_id = str(submission.task_id)
            if task_id in self.server.results:
                yield self._result(submission.index, task_id)
            else:
                error = TaskTimeoutError(task_id, timeout)
                yield BatchTaskResult(submission.index, task_id, True, error=error)

    def attach(self, task_id: str) -> Any:
        class Handle:
            pass

        handle: Any = Handle()
        handle.task_id = task_id
        return handle

    def forget(self, task_ids: Sequence[str]) -> None:
        if self.server.undeletable:
            self.server.undeletable -= 1
            raise OperatorConnectionError("o", "v", "NOPERM")
        for task_id in task_ids:
            self.server.results.pop(task_id, None)
        self.server.forgotten += task_ids

    def _result(self, index: int, task_id: str) -> BatchTaskResult:
        options = self.server.results[task_id]
        if options.get("fail"):
            failure = TaskExecutionError(task_id, "no")
            return BatchTaskResult(index, task_id, True, error=failure)
        return BatchTaskResult(index, task_id, True, [], options)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete two results at a time, wait for nobody, and spare the disk."""
    monkeypatch.setattr(_batch_run, "_TOGETHER", 2)
    monkeypatch.setattr(_batch_run, "_PAUSE", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


LINES = [
    b'{"options": {"n": 1}, "id": "one"}\n',
    b"\n",
    b'{"options": {"n": 3, "fail": true}}\n',
    b"no JSON\n",
    '{"options": {"n": 5, "text": "\u00fc"}}\n'.encode(),
    b'{"options": {"n": 6}, "id": {"any": "thing"}}\n',
    b'{"options": {"n": 7}}',
]
ASKED = {1, 3, 5, 6, 7}
EXPECTED = ASKED | {4}
HEADER = Header("o", "v", 1, "x")


class Bench:
    """One batch's files, and the server that outlives its processes."""

    def __init__(self, folder: Path, server: Server | None = None) -> None:
        self.files = Files(folder / "out.jsonl", folder / "out.jsonl.ledger")
        self.server = server or Server()

    def run(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        limit: int | None = None,
        together: int = 3,
        **plan: Any,
    ) -> int | None:
        """Run a process; return how much it wrote, ``None`` where it was killed."""
        disk = Disk(limit)
        client = cast(OperatorClient, FakeClient(self.server, together))
        with monkeypatch.context() as patched:
            patched.setattr(_journal, "_write", disk.write)
            try:
                journal = self.files.resume(HEADER)
            except Killed:
                return None
            try:
                BatchRun(client, journal, Plan(**plan), lambda _: None).run(wanted_lines(LINES))
                self.files.tidy(journal)
            except Killed:
                return None
            finally:
                journal.close()
        return disk.written

    def records(self) -> list[dict[str, Any]]:
        """Return the output."""
        return [json.loads(line) for line in self.files.output.read_bytes().splitlines()]

    def check(self) -> None:
        """Every line has one result, and every task was executed once and is forgotten."""
        records = self.records()
        assert Counter(record["line"] for record in records) == Counter(EXPECTED)
        assert self.server.lines == Counter(ASKED)
        assert not self.server.results
        by_line = {record["line"]: record for record in records}
        assert {line for line, record in by_line.items() if not record["success"]} == {3, 4}
        assert by_line[1]["id"] == "one"
        assert by_line[6]["id"] == {"any": "thing"}
        assert by_line[5]["results"] == {"n": 5, "text": "\u00fc"}
        assert by_line[3]["error"]["type"] == "TaskExecutionError"
        assert by_line[4]["error"]["path"] == "line 4"


def test_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that nobody disturbs, and one that is resumed when there is nothing to do."""
    bench = Bench(tmp_path)
    assert bench.run(monkeypatch)
    bench.check()
    before = bench.files.output.read_bytes()
    assert bench.run(monkeypatch) == 0
    assert bench.files.output.read_bytes() == before


def test_killed_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a write is cut, the next run does what is left, and only that."""
    for limit in itertools.count():
        folder = tmp_path / str(limit)
        folder.mkdir()
        bench = Bench(folder)
        done = bench.run(monkeypatch, limit=limit)
        assert bench.run(monkeypatch) is not None
        bench.check()
        if done is not None:
            assert limit > 1000
            break


@settings(deadline=None, max_examples=150)
@given(
    deaths=st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 4)), max_size=8),
    together=st.integers(1, 7),
)
def test_killed_again_and_again(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[tuple[int, int]], together: int
) -> None:
    """However often, and whatever was out at the time."""
    bench = Bench(tmp_path_factory.mktemp("batch"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for limit, out in deaths:
            bench.run(monkeypatch, limit=limit, together=out)
        assert bench.run(monkeypatch, together=together) is not None
    bench.check()


def test_without_a_broker_that_takes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may have been sent is waited for, and not sent again; lost, it is a failure."""
    whole = Bench(tmp_path).run(monkeypatch)
    assert whole is not None
    for limit in range(0, whole, 7):
        folder = tmp_path / str(limit)
        folder.mkdir()
        bench = Bench(folder, Server(takes_once=False))
        bench.run(monkeypatch, limit=limit, taken_once=False)
        assert bench.run(monkeypatch, taken_once=False) is not None
        assert max(bench.server.executed.values()) == 1
        records = bench.records()
        assert Counter(record["line"] for record in records) == Counter(EXPECTED)
        lost = {r["line"] for r in records if r.get("error", {}).get("type") == "TaskTimeoutError"}
        assert set(bench.server.lines) | lost == ASKED
        assert bench.run(monkeypatch, taken_once=False, retry_failed=True) is not None
        assert set(bench.server.lines) == ASKED


def test_results_that_nobody_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rpc:// the answers of a killed process are gone: failures, and not waited for."""
    bench = Bench(tmp_path, Server(takes_once=False))
    assert bench.run(monkeypatch, limit=450, taken_once=False, kept=False) is None
    assert bench.run(monkeypatch, taken_once=False, kept=False) is not None
    messages = [record["error"]["message"] for record in bench.records() if "error" in record]
    lost = [message for message in messages if "keeps it for nobody else" in message]
    assert lost
    assert max(bench.server.executed.values()) == 1


def test_old_tasks_are_attached_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sent longer ago than servers remember is not sent again."""
    bench = Bench(tmp_path)
    assert bench.run(monkeypatch, limit=450) is None
    server = bench.server
    server.takes_once = False  # an hour later
    monkeypatch.setattr(_batch_run, "TAKEN_ONCE_SECONDS", 0)
    assert bench.run(monkeypatch) is not None
    assert max(server.executed.values()) == 1
    assert Counter(record["line"] for record in bench.records()) == Counter(EXPECTED)


def test_failed_lines_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are done once more, under new ids, and the output has their last result alone."""
    bench = Bench(tmp_path)
    bench.run(monkeypatch)
    (others := tmp_path / "out.jsonl.tmp").write_text("somebody's")
    assert bench.run(monkeypatch) == 0
    first = {record["line"]: record for record in bench.records()}
    assert bench.run(monkeypatch, retry_failed=True)
    assert others.read_text() == "somebody's"
    assert bench.server.lines == Counter(ASKED) + Counter([3])
    second = {record["line"]: record for record in bench.records()}
    assert len(bench.records()) == len(EXPECTED)
    assert second[3]["attempt"] == 2
    assert second[3]["task_id"] != first[3]["task_id"]
    assert second[1] == first[1]
    assert bench.run(monkeypatch) == 0


def test_killed_while_failed_lines_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever that ends, the failed line is executed once for each retry."""
    for limit in range(0, 700, 3):
        folder = tmp_path / str(limit)
        folder.mkdir()
        bench = Bench(folder)
        bench.run(monkeypatch)
        done = bench.run(monkeypatch, retry_failed=True, limit=limit)
        assert bench.run(monkeypatch) is not None
        records = bench.records()
        assert Counter(record["line"] for record in records) == Counter(EXPECTED)
        attempts = {record["line"]: record["attempt"] for record in records}
        assert bench.server.lines[3] == attempts[3] <= 2
        assert not bench.server.results
        if done is not None:
            assert attempts[3] == attempts[4] == 2
            break
    else:
        pytest.fail("it was never done")


@pytest.mark.parametrize("doubtful", [False, True])
def test_a_broker_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubtful: bool
) -> None:
    """Tasks that it did not take are given to it again, and no line fails for it."""
    bench = Bench(tmp_path)
    bench.server.refusals, bench.server.doubtful = 5, doubtful
    bench.run(monkeypatch)
    bench.check()


def test_a_broker_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its patience a batch stops, with nothing recorded as failed, and can be resumed."""
    bench = Bench(tmp_path)
    bench.server.refusals = 1000
    with pytest.raises(Stopped) as caught:
        bench.run(monkeypatch, patience=0.0)
    assert isinstance(caught.value.__cause__, OperatorConnectionError)
    assert bench.records() == []
    bench.server.refusals = 0
    bench.run(monkeypatch)
    bench.check()


def test_results_that_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is done all the same, and the next run deletes what it finds recorded."""
    bench = Bench(tmp_path)
    bench.server.undeletable = 100
    assert bench.run(monkeypatch)
    assert 90 < bench.server.undeletable < 100
    assert len(bench.server.results) == len(ASKED)
    bench.server.undeletable = 0
    assert bench.run(monkeypatch)
    bench.check()


class Forgetful(FakeClient):
    """Its first submission is queued, and nobody says so until the server has forgotten it."""

    def map(self, tasks: Iterator[Any], *, max_in_flight: int) -> Iterator[BatchTaskResult]:
        for index, (_, options, task_id) in enumerate(tasks):
            self.server.submit(task_id, options)
            if self.server.takes_once:
                self.server.takes_once = False
                error = OperatorConnectionError("o", "v", "away", task_id)
                yield BatchTaskResult(index, task_id, False, error=error)
            else:
                yield self._result(index, task_id)


def test_a_task_in_doubt_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the broker may have forgotten that it took a task, it is not given that again."""
    server = Server()
    monkeypatch.setattr(_batch_run, "TAKEN_ONCE_SECONDS", 0)
    journal = Files(tmp_path / "out", tmp_path / "ledger").resume(HEADER)
    client = cast("OperatorClient", Forgetful(server))
    BatchRun(client, journal, Plan(), lambda _: None).run(wanted_lines(LINES))
    journal.close()
    assert server.lines == Counter(ASKED)
    assert not journal.account.pending
