"""The hub: one thread, started and ended, that tells everybody."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from sandai.op.client import _hub
from sandai.op.client._hub import ResultHub
from sandai.op.client._mailbox import Mailbox
from sandai.op.models import OperatorError
from sandai.op.transport import ResultDocument, TransportError

if TYPE_CHECKING:
    from conftest import FakeBackend

WAIT = 10.0


def hub_threads() -> list[threading.Thread]:
    """Return the hubs' threads."""
    return [thread for thread in threading.enumerate() if thread.name == "sandai-op-results"]


def soon() -> float:
    """Return a deadline that only a failing test reaches."""
    return time.monotonic() + WAIT


def warnings_of(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """Return how many log lines have *text*."""
    return sum(text in record.getMessage() for record in caplog.records)


class Fault:
    """Raise the error until it is taken away; tell when it was raised often enough."""

    def __init__(self, error: Exception | None, times: int = 3) -> None:
        self.error = error
        self.left = times
        self.happened = threading.Event()

    def __call__(self, _: Sequence[str]) -> None:
        if self.error is not None:
            self.left -= 1
            if self.left <= 0:
                self.happened.set()
            raise self.error


def test_a_stored_result_is_delivered_and_deleted(hub: ResultHub, backend: FakeBackend) -> None:
    """What is stored already reaches the waiter, who finds it deleted."""
    backend.store("a")
    box = Mailbox()
    hub.watch(["a"], box, delete=True)
    document = box.get(soon())
    assert document is not None
    assert document.task_id == "a"
    assert backend.deleted == ["a"]
    assert hub.statistics().swept == 1
    assert hub.statistics().pending == 0


def test_nothing_is_deleted_for_waiters_who_did_not_ask(
    hub: ResultHub, backend: FakeBackend
) -> None:
    """A result stays where nobody wanted it deleted."""
    backend.store("a")
    box = Mailbox()
    hub.watch(["a"], box, delete=False)
    assert box.get(soon()) is not None
    assert "a" in backend.stored


def test_ten_wait_for_one_task_and_nine_give_up(hub: ResultHub, backend: FakeBackend) -> None:
    """The one who stays is told, the others are not."""
    boxes = [Mailbox() for _ in range(10)]
    for box in boxes:
        hub.watch(["a"], box, delete=False)
    for box in boxes[:9]:
        assert hub.unwatch(["a"], box) == {"a"}
    backend.store("a")
    assert boxes[9].get(soon()) is not None
    assert all(box.get(0.0) is None for box in boxes[:9])
    assert hub.unwatch(["a"], boxes[9]) == set()


def test_a_state_that_is_not_final_ends_no_wait(hub: ResultHub, backend: FakeBackend) -> None:
    """STARTED is passed over."""
    looked = threading.Event()
    backend.stored["a"] = ResultDocument("a", "STARTED", {"status": "STARTED"})
    backend.on_look = lambda _: looked.set() if backend.looks > 1 else None
    box = Mailbox()
    hub.watch(["a"], box, delete=True)
    assert looked.wait(WAIT)
    assert box.get(0.0) is None
    backend.store("a")
    assert box.get(soon()) is not None


def test_the_thread_ends_when_nobody_waits(
    hub: ResultHub, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle hub has no thread; the next wait starts another."""
    monkeypatch.setattr(_hub, "IDLE_SECONDS", 0.0)
    for task_id in ("a", "b"):
        backend.store(task_id)
        box = Mailbox()
        hub.watch([task_id], box, delete=True)
        assert box.get(soon()) is not None
        for thread in hub_threads():
            thread.join(WAIT)
        assert hub_threads() == []


def test_watching_while_the_thread_is_ending_loses_nothing(
    hub: ResultHub, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that begins as the thread ends is told all the same, hundreds of times."""
    monkeypatch.setattr(_hub, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(_hub, "SHORTEST", 0.0005)
    failures: list[int] = []

    def wait(name: str) -> None:
        for number in range(150):
            task_id = f"{name}{number}"
            backend.store(task_id)
            box = Mailbox()
            hub.watch([task_id], box, delete=True)
            if box.get(soon()) is None:
                failures.append(number)

    threads = [threading.Thread(target=wait, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(hub_threads()) <= 1


def test_an_outage_is_logged_once_and_survived(
    hub: ResultHub, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Failing looks go on quietly; the failure can be read until all is well."""
    error = TransportError("gone")
    backend.on_look = fault = Fault(error)
    box = Mailbox()
    with caplog.at_level(logging.WARNING):
        hub.watch(["a"], box, delete=False)
        assert fault.happened.wait(WAIT)
        failures = [hub.failure]
        backend.store("a")
        fault.error = None
        assert box.get(soon()) is not None
    assert [*failures, hub.failure] == [error, None]
    assert warnings_of(caplog, "gone") == 1
    assert warnings_of(caplog, "well again") == 1


def test_an_unexpected_error_does_not_kill_the_reader(
    hub: ResultHub, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a backend is logged once, and results come once it is over."""
    backend.on_look = fault = Fault(LookupError("a bug"))
    box = Mailbox()
    with caplog.at_level(logging.WARNING):
        hub.watch(["a"], box, delete=False)
        assert fault.happened.wait(WAIT)
        assert "a bug" in str(hub.failure)
        fault.error = None
        backend.store("a")
        assert box.get(soon()) is not None
    assert warnings_of(caplog, "unexpectedly") == 1


@pytest.mark.parametrize("error", [TransportError("no DEL"), LookupError("a bug")])
def test_results_are_told_though_deleting_fails(
    hub: ResultHub, backend: FakeBackend, error: Exception
) -> None:
    """Whatever becomes of a deletion, who was settled is told."""
    backend.on_delete = Fault(error)
    backend.store("a")
    box = Mailbox()
    hub.watch(["a"], box, delete=True)
    assert box.get(soon()) is not None


def test_deletions_are_made_up_for(
    hub: ResultHub, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Deletions that failed are tried again; reading goes on, and the log has one line."""
    backend.on_delete = fault = Fault(TransportError("no DEL"))
    done = threading.Event()
    with caplog.at_level(logging.WARNING):
        for task_id in ("a", "b"):
            backend.store(task_id)
            box = Mailbox()
            hub.watch([task_id], box, delete=True)
            assert box.get(soon()) is not None
        assert fault.happened.wait(WAIT)
        assert hub.failure is None
        fault.error = None
        backend.on_delete = lambda _: done.set()
        assert done.wait(WAIT)
        hub.close()
    assert sorted(backend.deleted) == ["a", "b"]
    assert warnings_of(caplog, "no DEL") == 1


def test_deletions_that_never_work_do_not_pile_up(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many deletions are kept for later."""
    monkeypatch.setattr(_hub, "_MOST_DELETIONS", 2)
    backend.on_delete = Fault(TransportError("no DEL"))
    hub = ResultHub(backend)
    hub._table.delete("abcde")
    hub._apply_changes()
    assert hub._table.changes().delete == ["d", "e"]


def test_no_thread_to_be_had_is_not_for_good(
    hub: ResultHub, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that cannot be started fails that wait, not the next."""
    box = Mailbox()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        with pytest.raises(RuntimeError, match="no thread"):
            hub.watch(["a"], box, delete=False)
    hub.unwatch(["a"], box)
    backend.store("a")
    hub.watch(["a"], box, delete=False)
    assert box.get(soon()) is not None


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("no thread")


def test_a_thread_whose_start_was_interrupted_does_not_read(
    hub: ResultHub, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a thread starts leaves one reader in the end, not two."""
    start = threading.Thread.start
    unwanted: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        unwanted.append(thread)
        start(thread)
        raise KeyboardInterrupt

    box = Mailbox()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hub.watch(["a"], box, delete=False)
    backend.store("a")
    hub.watch(["a"], box, delete=False)
    assert box.get(soon()) is not None
    unwanted[0].join(WAIT)
    [reader] = hub_threads()
    assert reader is not unwanted[0]


def test_closing_ends_the_thread_at_once(hub: ResultHub) -> None:
    """Waits or none, a closed hub has no thread, and closing again does nothing."""
    hub.watch(["a"], Mailbox(), delete=False)
    assert len(hub_threads()) == 1
    hub.close()
    assert hub_threads() == []
    hub.close()
    hub.watch(["b"], Mailbox(), delete=False)
    for thread in hub_threads():
        thread.join(WAIT)
    assert hub_threads() == []


def test_a_hub_may_be_closed_from_its_own_thread(hub: ResultHub, backend: FakeBackend) -> None:
    """A callback that closes the last client does not wait for itself."""
    closed = threading.Event()

    class Closes:
        def deliver(self, document: ResultDocument) -> None:
            assert hub.is_current_thread
            hub.close()
            closed.set()

    backend.store("a")
    hub.watch(["a"], Closes(), delete=False)
    assert closed.wait(WAIT)
    for thread in hub_threads():
        thread.join(WAIT)
    assert hub_threads() == []


def test_a_dropped_hub_is_collected_without_gc(backend: FakeBackend) -> None:
    """A hub that has ended leaves its descriptors to nobody."""
    import weakref

    hub = ResultHub(backend)
    hub.watch(["a"], Mailbox(), delete=False)
    hub.close()
    dropped = weakref.ref(hub)
    del hub
    assert dropped() is None


def test_the_failure_is_an_operator_error(hub: ResultHub) -> None:
    """Nothing has failed while nothing was tried."""
    failure: OperatorError | None = hub.failure
    assert failure is None
