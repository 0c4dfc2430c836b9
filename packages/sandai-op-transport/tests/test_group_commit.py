"""One thread writes for those who come meanwhile; each has its own outcome, whatever happens."""

import math
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import ConnectionPool, Limiter, Outcome, Posting, TransportError
from sandai.op.transport._group_commit import GroupCommit

WAIT = 10.0


class Connection:
    """Nothing but an identity."""


class Opener:
    """Opens connections, unless it is told to fail."""

    def __init__(self) -> None:
        self.failure: TransportError | None = None
        self.opened = 0

    def open(self, timeout: float | None) -> Connection:
        if self.failure is not None:
            raise self.failure
        self.opened += 1
        return Connection()

    def usable(self, connection: Connection) -> bool:
        return True

    def close(self, connection: Connection) -> None:
        return


class Writes:
    """Notes what is written; holds each write up until it is allowed."""

    def __init__(self, limit: int = 4, most: int = 100) -> None:
        self.opener = Opener()
        self.limiter = Limiter("broker", limit)
        self.pool: ConnectionPool[Connection] = ConnectionPool(self.limiter, self.opener)
        self.commit: GroupCommit[Connection, int] = GroupCommit(self.pool, self._write, most)
        self.written: list[list[int]] = []
        self.threads: list[int] = []
        self.begun = threading.Semaphore(0)
        self.allowed = threading.Semaphore(1_000_000)
        self.failure: BaseException | None = None

    def _write(self, connection: Connection, items: Sequence[int], outcomes: list[Outcome]) -> None:
        self.written.append(list(items))
        self.threads.append(threading.get_ident())
        self.begun.release()
        assert self.allowed.acquire(timeout=WAIT)
        failure, self.failure = self.failure, None
        if isinstance(failure, TransportError):
            outcomes += [failure] * len(items)
        if failure is not None:
            raise failure
        outcomes += [None] * len(items)


def queued(writes: Writes, count: int) -> None:
    """Wait until so many callers are queued."""
    deadline = time.monotonic() + WAIT
    while len(writes.commit._queued) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no writer for stuck."""
    monkeypatch.setattr("sandai.op.transport._group_commit._STUCK", WAIT)


def test_a_lone_caller() -> None:
    """It writes at once, in its own thread, and the next one does again."""
    writes = Writes()
    assert writes.commit.submit([1, 2], 5) == [None, None]
    assert writes.commit.submit([3], 5) == [None]
    assert writes.written == [[1, 2], [3]]
    assert set(writes.threads) == {threading.get_ident()}
    assert writes.opener.opened == 1


@pytest.mark.usefixtures("patient")
def test_those_who_come_meanwhile() -> None:
    """They go out together, in order, in pieces that are not too large."""
    writes = Writes(most=4)
    writes.allowed = threading.Semaphore(0)
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(writes.commit.submit, [0], WAIT)]
        assert writes.begun.acquire(timeout=WAIT)
        for number in range(1, 6):
            calls.append(threads.submit(writes.commit.submit, [number, -number], WAIT))
            queued(writes, number)
        writes.allowed.release(10)
        assert [call.result(WAIT) for call in calls] == [[None], *[[None, None]] * 5]
    assert writes.written == [[0], [1, -1, 2, -2], [3, -3, 4, -4], [5, -5]]
    assert writes.opener.opened == 1


def test_more_than_fits_goes_out_alone() -> None:
    """A caller's items are not torn apart."""
    writes = Writes(most=2)
    assert writes.commit.submit([1, 2, 3], 5) == [None] * 3
    assert writes.written == [[1, 2, 3]]


def test_a_stuck_writer_is_not_waited_for() -> None:
    """Others write on a connection of their own before long."""
    writes = Writes()
    writes.allowed = threading.Semaphore(0)
    with ThreadPoolExecutor(2) as threads:
        stuck = threads.submit(writes.commit.submit, [1], WAIT)
        assert writes.begun.acquire(timeout=WAIT)
        other = threads.submit(writes.commit.submit, [2], WAIT)
        assert writes.begun.acquire(timeout=WAIT)
        assert writes.written == [[1], [2]]
        writes.allowed.release(2)
        assert stuck.result(WAIT) == other.result(WAIT) == [None]


def test_who_may_not_wait() -> None:
    """A timeout of 0 takes a free permit, whoever writes; without one it fails at once."""
    writes = Writes(limit=2)
    writes.allowed = threading.Semaphore(0)
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(writes.commit.submit, [n], 0) for n in (1, 2)]
        for _ in calls:
            assert writes.begun.acquire(timeout=WAIT)
        [late] = writes.commit.submit([3], 0)
        assert isinstance(late, ClientPoolTimeoutError)
        assert (late.timeout, late.limit) == (0, 2)
        writes.allowed.release(2)
        assert [call.result(WAIT) for call in calls] == [[None], [None]]
    assert sorted(writes.written) == [[1], [2]]


def test_no_permit_in_time() -> None:
    """Who waited in vain is told its own timeout, and is not written later."""
    writes = Writes(limit=1)
    writes.allowed = threading.Semaphore(0)
    with ThreadPoolExecutor(3) as threads:
        holder = threads.submit(writes.commit.submit, [1], WAIT)
        assert writes.begun.acquire(timeout=WAIT)
        late = [threads.submit(writes.commit.submit, [n], 0.15 + n / 100) for n in (2, 3)]
        for number, call in zip((2, 3), late, strict=True):
            [outcome] = call.result(WAIT)
            assert isinstance(outcome, ClientPoolTimeoutError)
            assert outcome.timeout == 0.15 + number / 100
        writes.allowed.release(9)
        assert holder.result(WAIT) == [None]
    assert writes.commit.submit([4], 5) == [None]
    assert writes.written == [[1], [4]]


def test_no_connection() -> None:
    """Each caller has the error of its own attempt, and nothing was written."""
    writes = Writes()
    writes.opener.failure = TransportError("refused")
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(writes.commit.submit, [n], WAIT) for n in range(8)]
        assert [str(call.result(WAIT)[0]) for call in calls] == ["refused"] * 8
    writes.opener.failure = None
    assert writes.commit.submit([9], 5) == [None]
    assert writes.written == [[9]]
    assert writes.limiter.statistics().in_use == 0


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "error", [TransportError("broke", True), KeyboardInterrupt(), SystemExit()]
)
def test_the_writer_fails(error: BaseException) -> None:
    """Who was taken along is in doubt, who was not goes on; only an interruption is raised."""
    writes = Writes(most=2)
    writes.allowed = threading.Semaphore(0)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(writes.commit.submit, [0], WAIT)
        assert writes.begun.acquire(timeout=WAIT)
        others = []
        for number in range(1, 5):
            others.append(threads.submit(writes.commit.submit, [number], WAIT))
            queued(writes, number)
        writes.allowed.release()
        assert writes.begun.acquire(timeout=WAIT)  # the first is through, two are being written
        writes.failure = error
        writes.allowed.release(9)
        assert first.result(WAIT) == [None]
        if isinstance(error, TransportError):
            [leading] = others[0].result(WAIT)
            assert leading is error
        else:
            assert others[0].exception(WAIT) is error
        [doubt] = others[1].result(WAIT)
        assert isinstance(doubt, TransportError)
        assert doubt.maybe_done
        assert [call.result(WAIT) for call in others[2:]] == [[None], [None]]
    assert writes.written == [[0], [1, 2], [3, 4]]
    assert writes.limiter.statistics().in_use == 0


def test_at_random() -> None:
    """Thirty-two threads, failing writes, short patience: each item once, and its true outcome."""
    limiter, opener = Limiter("broker", 3), Opener()
    pool: ConnectionPool[Connection] = ConnectionPool(limiter, opener)
    lock = threading.Lock()
    there: dict[int, bool] = {}

    def write(connection: Connection, items: Sequence[int], outcomes: list[Outcome]) -> None:
        chance = random.random()
        fails = chance < 0.1
        with lock:
            for item in items:
                assert item not in there
                there[item] = not fails
        if chance > 0.9:
            time.sleep(random.random() / 20)
        if fails:
            broke = TransportError("broke", True)
            outcomes += [broke] * len(items)
            raise broke
        outcomes += [None] * len(items)

    commit: GroupCommit[Connection, int] = GroupCommit(pool, write, 20)

    def work(thread: int) -> int:
        late = 0
        for step in range(150):
            first = (thread * 150 + step) * 10
            items = range(first, first + random.choice([1, 1, 1, 2, 9]))
            outcomes = commit.submit(items, random.choice([0, 0.001, 0.01, 10]))
            assert len(outcomes) == len(items)
            if isinstance(outcomes[0], ClientPoolTimeoutError):
                late += 1
                with lock:
                    assert not any(item in there for item in items)
                continue
            with lock:
                assert [outcome is None for outcome in outcomes] == [there[n] for n in items]
        return late

    with ThreadPoolExecutor(32) as threads:
        assert sum(threads.map(work, range(32))) > 0
    assert limiter.statistics().in_use == 0
    assert not commit._queued


def test_posted_and_waited_for_elsewhere() -> None:
    """Who has more to wait for is woken when it is its turn, and when there is an outcome."""
    writes = Writes()
    writes.allowed = threading.Semaphore(0)
    woken = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(writes.commit.submit, [1], WAIT)
        assert writes.begun.acquire(timeout=WAIT)
        posting = writes.commit.post([2], WAIT, lambda _: woken.set())
        assert posting.pursue() < 1
        assert [posting.outcomes] == [None]
        writes.allowed.release(2)
        assert first.result(WAIT) == [None]
        assert woken.wait(WAIT)
        posting.pursue()
        assert posting.outcomes == [None]
        assert posting.pursue() == math.inf
    assert writes.written == [[1], [2]]


def test_withdrawn() -> None:
    """What its caller gave up is not written, and the turn goes on to the next."""
    writes = Writes()
    woken: list[Posting[int]] = []
    given_up, other = (writes.commit.post([n], WAIT, woken.append) for n in (1, 2))
    assert [given_up.withdraw(), given_up.withdraw()] == [True, False]
    assert woken == [other]
    assert other.pursue() == math.inf
    assert writes.written == [[2]]
    assert not other.withdraw()
