"""Waiting and looking: timeouts, late results, closing."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import pytest

from sandai.op.client._mailbox import Mailbox
from sandai.op.client._results import ResultReader
from sandai.op.models import (
    ClientClosedError,
    ConfigurationError,
    InvalidTaskError,
    OperatorConnectionError,
    TaskTimeoutError,
)
from sandai.op.transport import ResultDocument, Transport, TransportError, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conftest import FakeBackend
    from sandai.op.client._submitter import Submission

WAIT = 10.0


class _Broker:
    punctual = False


class _Transport:
    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.broker = _Broker()


@pytest.fixture
def reader(backend: FakeBackend) -> Iterator[ResultReader]:
    """Yield a reader on the backend in memory."""
    reader = ResultReader(resolve("op", "v1", env={}), cast("Transport", _Transport(backend)))
    yield reader
    reader.close()
    backend.close()


def test_a_wait_returns_the_document(reader: ResultReader, backend: FakeBackend) -> None:
    """A stored result ends a wait, and is deleted when asked for."""
    backend.store("a", {"n": 1})
    assert reader.wait("a", WAIT, delete=True).reply()["results"] == {"n": 1}
    assert backend.deleted == ["a"]


def test_a_wait_that_runs_out_says_so(reader: ResultReader) -> None:
    """The error has the task and the caller's timeout, and nothing stays in the table."""
    with pytest.raises(TaskTimeoutError) as caught:
        reader.wait("a", 0.05, delete=True)
    assert (caught.value.task_id, caught.value.timeout) == ("a", 0.05)
    assert caught.value.__cause__ is None
    assert reader.hub.statistics().pending == 0


def test_the_cause_of_a_timeout_is_the_backends_failure(
    reader: ResultReader, backend: FakeBackend
) -> None:
    """A wait during an outage says what was wrong."""
    error = TransportError("gone")

    def fail(_: Sequence[str]) -> None:
        raise error

    backend.on_look = fail
    with pytest.raises(TaskTimeoutError) as caught:
        reader.wait("a", 0.2, delete=True)
    assert caught.value.__cause__ is error


def test_zero_looks_once(reader: ResultReader, backend: FakeBackend) -> None:
    """No thread, one look; what is stored is returned, what is not is late."""
    with pytest.raises(TaskTimeoutError):
        reader.wait("a", 0, delete=True)
    backend.store("a")
    assert reader.wait("a", 0, delete=True).ready
    assert backend.deleted == ["a"]
    assert backend.looks == 2


def test_a_single_look_raises_what_is_wrong(reader: ResultReader, backend: FakeBackend) -> None:
    """Looking once does not retry."""

    def fail(_: Sequence[str]) -> None:
        raise TransportError("gone", maybe_done=True)

    backend.on_look = fail
    with pytest.raises(OperatorConnectionError, match="gone") as caught:
        reader.wait("a", 0, delete=True)
    assert caught.value.task_id is None
    with pytest.raises(OperatorConnectionError):
        reader.look("a")


def test_a_failing_deletion_does_not_cost_a_result(
    reader: ResultReader, backend: FakeBackend
) -> None:
    """What a single look has read is returned, deleted or not."""

    def fail(_: Sequence[str]) -> None:
        raise TransportError("the reply was lost", maybe_done=True)

    backend.on_delete = fail
    backend.store("a")
    assert reader.wait("a", 0, delete=True).ready


@pytest.mark.parametrize("timeout", [-1, math.nan, "5", True])
def test_timeouts_that_are_none(reader: ResultReader, timeout: float) -> None:
    """A timeout is a number of at least 0."""
    with pytest.raises(ConfigurationError, match="timeout"):
        reader.wait_limit(timeout)


def test_limits(reader: ResultReader) -> None:
    """A call's own timeout wins; none means the client's."""
    assert reader.wait_limit(None) == 28800
    assert reader.wait_limit(0) == 0
    assert reader.wait_limit(2.5) == 2.5
    assert reader.wait_limit(math.inf) is None


def test_a_result_settled_at_the_moment_of_the_timeout_is_returned(
    reader: ResultReader, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline passes while the document is settled but not told yet."""
    told = threading.Event()
    get = Mailbox.get

    def late(box: Mailbox, deadline: float) -> ResultDocument | None:
        if not told.is_set():
            told.set()
            # The hub is in _tell now: settled, deleting. Our deadline is over.
            assert deleting.wait(WAIT)
            return None
        threading.Timer(0.05, go.set).start()
        return get(box, deadline)

    deleting, go = threading.Event(), threading.Event()

    def slow(_: Sequence[str]) -> None:
        deleting.set()
        assert go.wait(WAIT)

    backend.on_delete = slow
    backend.store("a")
    monkeypatch.setattr(Mailbox, "get", late)
    assert reader.wait("a", 0.01, delete=True).ready


class _Submission:
    """One that says something just as the result is being taken."""

    def __init__(self, taken: threading.Event, say: Callable[[], object]) -> None:
        self.urgent = self.settled = False
        self._taken = taken
        self._say = say

    def pursue(self) -> float:
        if not self.urgent:
            return math.inf
        assert self._taken.wait(WAIT)
        self._say()
        self.settled = True
        return 0.0

    def succeed(self) -> None: ...
    def withdraw(self) -> None: ...


@pytest.mark.parametrize("doubted", [True, False])
def test_a_result_that_comes_with_news_of_the_submission_is_returned(
    reader: ResultReader, backend: FakeBackend, *, doubted: bool
) -> None:
    """It has been deleted for this caller, who gets it whatever is said of the submission."""
    taken = threading.Event()

    def deleting(_: Sequence[str]) -> None:
        taken.set()
        time.sleep(0.1)

    def begin(wake: Callable[[], object]) -> Submission:
        def say() -> None:
            if doubted:
                raise OperatorConnectionError("op", "v1", "no answer", "a")
            wake()

        return cast("Submission", _Submission(taken, say))

    backend.on_delete = deleting
    backend.store("a", {"n": 1})
    assert reader.wait("a", 0.01, delete=True, submit=begin).reply()["results"] == {"n": 1}


def test_a_submission_in_doubt_without_a_result_is_told(reader: ResultReader) -> None:
    """Then nothing says that it was queued, and the wait leaves the table."""
    taken = threading.Event()
    taken.set()

    def say() -> None:
        raise OperatorConnectionError("op", "v1", "no answer", "a")

    with pytest.raises(OperatorConnectionError):
        reader.wait(
            "a", 0.01, delete=True, submit=lambda _: cast("Submission", _Submission(taken, say))
        )
    assert reader.hub.statistics().pending == 0


def test_no_result_is_lost_to_a_timeout(reader: ResultReader, backend: FakeBackend) -> None:
    """Hundreds of waits that end as their results come: told, or still stored."""
    lost: list[str] = []

    def wait(name: str) -> None:
        for number in range(60):
            task_id = f"{name}{number}"
            timer = threading.Timer(0.002, backend.store, [task_id])
            timer.start()
            try:
                reader.wait(task_id, 0.0015 + number % 5 * 0.0005, delete=True)
            except TaskTimeoutError:
                timer.join()
                if task_id not in backend.stored:
                    lost.append(task_id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(wait, "abcdef"))
    assert lost == []
    assert reader.hub.statistics().pending == 0


def test_many_are_yielded_as_they_come(reader: ResultReader, backend: FakeBackend) -> None:
    """Ids are waited for once each; what is late is not yielded."""
    backend.store("b")
    came = reader.wait_many(["a", "b", "b", "c"], 0.3, delete=False)
    assert next(came).task_id == "b"
    backend.store("a")
    assert [document.task_id for document in came] == ["a"]
    assert reader.hub.statistics().pending == 0
    assert list(reader.wait_many([], None, delete=False)) == []


def test_an_interrupted_wait_leaves_the_table(
    reader: ResultReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a wait is raised, and nobody waits any more."""

    def interrupted(box: Mailbox, deadline: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Mailbox, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reader.wait("a", None, delete=True)
    assert reader.hub.statistics().pending == 0


def test_closing_ends_waits_and_refuses_later_ones(reader: ResultReader) -> None:
    """Every thread that waits gets the error, and so does who comes later."""
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(reader.wait, f"t{n}", None, delete=True) for n in range(4)]
        while reader.hub.statistics().pending < 4:
            time.sleep(0.001)
        reader.close()
        for wait in waits:
            with pytest.raises(ClientClosedError):
                wait.result(WAIT)
    for call in (reader.look, lambda task_id: reader.wait(task_id, 1, delete=True)):
        with pytest.raises(ClientClosedError):
            call("a")
    assert reader.hub.statistics().pending == 0


def test_closing_while_waits_begin(backend: FakeBackend) -> None:
    """Hundreds of waits that begin as the client closes all end."""
    for _ in range(100):
        reader = ResultReader(resolve("op", "v1", env={}), cast("Transport", _Transport(backend)))
        start = threading.Barrier(4)

        def wait(reader: ResultReader = reader, start: threading.Barrier = start) -> None:
            start.wait(WAIT)
            with pytest.raises(ClientClosedError):
                reader.wait("a", None, delete=True)

        with ThreadPoolExecutor(3) as pool:
            waits = [pool.submit(wait) for _ in range(3)]
            start.wait(WAIT)
            reader.close()
            for each in waits:
                each.result(WAIT)
        assert reader.hub.statistics().pending == 0
    backend.close()


def test_a_callback_is_called_and_may_fail(reader: ResultReader, backend: FakeBackend) -> None:
    """A callback that fails, even with SystemExit, costs nobody else anything."""
    called: list[str] = []

    def fail(document: ResultDocument) -> None:
        called.append(document.task_id)
        raise SystemExit

    reader.watch("a", fail)
    backend.store("a")
    backend.store("b")
    assert reader.wait("a", WAIT, delete=False).ready
    assert reader.wait("b", WAIT, delete=False).ready
    assert called == ["a"]


def test_a_callback_goes_with_its_keeper(reader: ResultReader, backend: FakeBackend) -> None:
    """When the keeper is gone nobody waits any more, and nothing is called."""

    class Keeper:
        pass

    called: list[str] = []
    both = threading.Event()
    keeper, gone = Keeper(), Keeper()

    def callback(document: ResultDocument) -> None:
        called.append(document.task_id)

    reader.watch("a", callback, keeper=keeper)
    reader.watch("b", callback, keeper=gone)
    reader.watch("c", lambda _: both.set())
    del gone
    backend.store("c")
    assert both.wait(WAIT)  # the hub has been round since
    assert reader.hub.statistics().pending == 1
    backend.store("a")
    backend.store("b")
    assert reader.wait("a", WAIT, delete=False).ready
    assert called == ["a"]
    assert not reader._callbacks


def test_an_id_that_cannot_be_sent_disturbs_nobody(
    reader: ResultReader, backend: FakeBackend
) -> None:
    """A task id that is no text is refused before it reaches the shared hub."""
    for call in (
        lambda: reader.wait("\udc80", WAIT, delete=False),
        lambda: reader.look("\udc80"),
        lambda: reader.forget(["\udc80"]),
        lambda: reader.watch("\udc80", print),
        lambda: reader.handle("\udc80"),
    ):
        with pytest.raises(InvalidTaskError):
            call()
    assert reader.hub.statistics().pending == 0


def test_a_dropped_iterator_is_no_finalizer_with_locks(
    reader: ResultReader, backend: FakeBackend
) -> None:
    """An iterator that the garbage collector closes, inside whatever lock, waits no more."""
    backend.store("a")
    many = reader.wait_many(["a", "b"], WAIT, delete=False)
    assert next(many).task_id == "a"
    with reader.hub._table._lock:
        del many  # closed here: a lock would never come
    assert reader.hub.statistics().pending == 1
    with pytest.raises(TaskTimeoutError):
        reader.wait("c", 0.1, delete=False)  # the hub has been round since
    assert reader.hub.statistics().pending == 0


def test_a_callback_may_not_wait(reader: ResultReader, backend: FakeBackend) -> None:
    """Waiting in the thread that reads is an error, not a deadlock."""
    raised: list[BaseException] = []
    done = threading.Event()

    def wait(document: ResultDocument) -> None:
        try:
            reader.wait("never", None, delete=False)
        except RuntimeError as error:
            raised.append(error)
        done.set()

    backend.store("a")
    reader.watch("a", wait)
    assert done.wait(WAIT)
    assert "may not wait" in str(raised[0])


def test_closing_drops_callbacks(reader: ResultReader) -> None:
    """A task that never ends keeps neither the hub busy nor the callback alive."""
    reader.watch("never", lambda _: None)
    assert reader.hub.statistics().pending == 1
    reader.close()
    assert reader.hub.statistics().pending == 0
    with pytest.raises(ClientClosedError):
        reader.watch("b", lambda _: None)
    assert reader.hub.statistics().pending == 0


@pytest.mark.parametrize("task_id", ["", None, 7])
def test_a_handle_needs_an_id(reader: ResultReader, task_id: object) -> None:
    """What is no id is refused before anything is asked."""
    with pytest.raises(InvalidTaskError, match="task_id"):
        reader.handle(task_id)


def test_many_are_deleted_some_at_a_time(reader: ResultReader, backend: FakeBackend) -> None:
    """One command of a hundred thousand keys would keep the server from everybody else."""
    sizes: list[int] = []
    backend.on_delete = lambda task_ids: sizes.append(len(task_ids))
    ids = [str(n) for n in range(2500)]
    reader.forget(ids)
    assert sizes == [1000, 1000, 500]
    assert backend.deleted == ids
