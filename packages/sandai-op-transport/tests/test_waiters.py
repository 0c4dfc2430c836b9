"""The table of waiters: every waiter is told once, and the subscriptions follow."""

import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sandai.op.transport import Changes, ResultDocument, WaiterTable


class Waiting:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def deliver(self, document: ResultDocument) -> None:
        self.told.append(document.task_id)


def done(task_id: str, state: str = "SUCCESS") -> ResultDocument:
    """Return a task's document."""
    return ResultDocument(task_id, state)


def test_changes() -> None:
    """What begins and ends is told once."""
    table, waiter = WaiterTable(), Waiting()
    table.add(["a", "b"], waiter, delete=False)
    assert [table.changed] == [True]
    assert table.changes() == Changes([], [], ["a", "b"])
    assert [table.changed] == [False]
    assert not table.changes()
    assert table.settle(done("a")) == [waiter]
    assert table.discard(["a", "b", "c"], waiter) == {"b"}
    assert table.changes() == Changes(["a", "b"], [], [])
    assert len(table) == 0


def test_never_subscribed_is_never_left() -> None:
    """Who gives up before anything was said to Redis leaves nothing to say."""
    table, waiter = WaiterTable(), Waiting()
    table.add(["a"], waiter, delete=True)
    table.discard(["a"], waiter)
    assert not table.changes()


def test_settled_and_waited_for_again() -> None:
    """A task can be left and joined at once; then it is looked at again."""
    table, waiter = WaiterTable(), Waiting()
    table.add(["a"], waiter, delete=True)
    table.changes()
    table.settle(done("a"))
    table.add(["a"], waiter, delete=False)
    assert table.changes() == Changes(["a"], ["a"], ["a"])
    table.settle(done("a"))
    table.add(["a"], waiter, delete=False)
    table.discard(["a"], waiter)
    assert table.changes() == Changes(["a"], [], [])


@pytest.mark.parametrize("state", ["STARTED", "RETRY", "PENDING", "PROGRESS"])
def test_other_states_settle_nothing(state: str) -> None:
    """A state that ends no wait reaches nobody."""
    table, waiter = WaiterTable(), Waiting()
    table.add(["a"], waiter, delete=False)
    assert table.settle(done("a", state)) == []
    assert table.ids() == ["a"]


def test_what_begins_together_is_kept_apart() -> None:
    """Of tasks that were added in one call each has its own waiters."""
    table, first, second = WaiterTable(), Waiting(), Waiting()
    table.add(["a", "b", "c"], first, delete=False)
    table.add(["b"], second, delete=True)
    table.add(["c"], first, delete=True)
    assert table.settle(done("a")) == [first]
    assert table.settle(done("b")) == [first, second]
    assert table.changes().delete == ["b"]
    assert table.discard(["c"], second) == set()
    assert table.settle(done("c")) == [first]
    assert table.changes().delete == ["c"]
    table.add(["d", "e"], first, delete=False)
    assert table.discard(["d"], first) == {"d"}
    assert table.discard(["d"], first) == set()
    assert table.settle(done("e")) == [first]


def test_many_waiters_of_one_task() -> None:
    """Ten wait, nine leave: the one left is told, and only then is the task left."""
    table, waiters = WaiterTable(), [Waiting() for _ in range(10)]
    for waiter in waiters:
        table.add(["a"], waiter, delete=waiter is waiters[0])
    assert table.changes().join == ["a"]
    for waiter in waiters[1:]:
        assert table.discard(["a"], waiter) == {"a"}
    assert not table.changes()
    assert table.settle(done("a")) == [waiters[0]]
    assert table.changes() == Changes(["a"], ["a"], [])


def test_deletion_is_asked_for_by_one() -> None:
    """A result is deleted when any of those who read it want that, and they are still there."""
    table, one, other = WaiterTable(), Waiting(), Waiting()
    table.add(["a"], one, delete=True)
    table.add(["a"], other, delete=False)
    table.discard(["a"], one)
    table.settle(done("a"))
    assert table.changes().delete == []
    table.delete(["x", "y", "x"])
    assert table.changes().delete == ["x", "y"]


def test_reconnect() -> None:
    """After a reconnect everything is joined again and nothing left; deletions stand."""
    table, waiter = WaiterTable(), Waiting()
    table.add(["a", "b"], waiter, delete=True)
    table.changes()
    table.settle(done("a"))
    table.rejoin_all()
    assert table.changes() == Changes([], ["a"], ["b"])


def test_young_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest waits are known without a look at the others; a new wait makes a task young."""
    table, waiter, now = WaiterTable(), Waiting(), 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert not table.any_younger_than(1.0, now)
    table.add(["old", "again"], waiter, delete=False)
    now = 105.0
    table.add(["young", "again"], Waiting(), delete=False)
    assert set(table.younger_than(1.0, 105.5)) == {"young", "again"}
    assert table.any_younger_than(1.0, 105.5)
    assert table.younger_than(1.0, 107.0) == []
    assert not table.any_younger_than(1.0, 107.0)
    assert table.ids() == ["old", "young", "again"]


def test_threads() -> None:
    """However threads add, give up and settle, each wait ends exactly once."""
    table = WaiterTable()
    counts: list[int] = []

    def work(own: int) -> None:
        waiter, ended = Waiting(), 0
        for turn in range(300):
            task_id = f"{own}-{turn}"
            table.add([task_id], waiter, delete=True)
            settler = threading.get_ident() % 2 == turn % 2
            if settler:
                for told in table.settle(done(task_id)):
                    told.deliver(done(task_id))
            ended += len(table.discard([task_id], waiter))
        counts.append(ended + len(waiter.told))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [300] * 6
    assert len(table) == 0


TASKS = st.sampled_from("abc")
WAITERS = st.integers(0, 2)


class Interleavings(RuleBasedStateMachine):
    """The table against a model of who waits and a model of Redis."""

    @initialize()
    def begin(self) -> None:
        self.table = WaiterTable()
        self.waiters = [Waiting() for _ in range(3)]
        self.model: dict[str, dict[int, bool]] = {}
        self.subscribed: set[str] = set()
        self.unlooked: set[str] = set()
        self.deleted: set[str] = set()
        self.to_delete: set[str] = set()

    @rule(task_id=TASKS, number=WAITERS, delete=st.booleans())
    def add(self, task_id: str, number: int, delete: bool) -> None:
        if task_id not in self.model:
            self.unlooked.add(task_id)
        self.model.setdefault(task_id, {})[number] = delete
        self.table.add([task_id], self.waiters[number], delete=delete)

    @rule(task_id=TASKS, number=WAITERS)
    def discard(self, task_id: str, number: int) -> None:
        waits = self.model.get(task_id, {})
        expected = {task_id} if number in waits else set()
        assert self.table.discard([task_id], self.waiters[number]) == expected
        waits.pop(number, None)
        if not waits:
            self.model.pop(task_id, None)

    @rule(task_id=TASKS)
    def settle(self, task_id: str) -> None:
        waits = self.model.pop(task_id, {})
        expected = [self.waiters[number] for number in waits]
        assert self.table.settle(done(task_id)) == expected
        if any(waits.values()):
            self.to_delete.add(task_id)

    @rule()
    def tell_redis(self) -> None:
        changes = self.table.changes()
        assert set(changes.leave) <= self.subscribed
        self.subscribed -= set(changes.leave)
        assert set(changes.delete) == self.to_delete
        self.to_delete = set()
        self.subscribed |= set(changes.join)
        self.unlooked -= set(changes.join)
        assert self.subscribed == set(self.model)
        assert not self.unlooked & set(self.model)

    @rule()
    def reconnect(self) -> None:
        self.subscribed = set()
        self.unlooked = set(self.model)
        self.table.rejoin_all()

    @invariant()
    def waits(self) -> None:
        assert set(self.table.ids()) == set(self.model)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
