"""Sweeps find what push missed: soon for young waits, often while push is distrusted."""

import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from sandai.op.transport import SHORTEST, YOUNG, ResultDocument, SweepSchedule, WaiterTable
from sandai.op.transport._sweeping import DISTRUST, LONGEST


class Waiting:
    """A waiter that is never told."""

    def deliver(self, document: ResultDocument) -> None:
        raise AssertionError


class World:
    """A schedule, a table and a clock that is turned by hand, a tick at a time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.table = WaiterTable()
        self.schedule = SweepSchedule()
        self.schedule.reset(self.now)

    def wait_for(self, *task_ids: str) -> None:
        """Begin to wait for tasks."""
        self.table.add(task_ids, Waiting(), delete=False)

    def sweeps(self, seconds: float, task_id: str, *, pushing: bool = True) -> list[float]:
        """Return how many seconds from now a task is looked at, within some time."""
        begin, seen = self.now, []
        for tick in range(round(seconds * 100)):
            self.now = begin + tick / 100
            if task_id in self.schedule.due(self.table, self.now, pushing=pushing):
                seen.append(tick / 100)
        self.now = begin + seconds
        return seen

    def finds(self, task_id: str) -> None:
        """Have a sweep find a task's result."""
        found = ResultDocument(task_id, "SUCCESS")
        self.schedule.looked([task_id], [found], self.now)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world whose clock the table reads too."""
    world = World()
    clock: Callable[[], float] = lambda: world.now  # noqa: E731  # a name would say no more
    monkeypatch.setattr(time, "monotonic", clock)
    return world


def gaps(seen: list[float]) -> list[float]:
    """Return the times between looks."""
    return [after - before for before, after in pairwise(seen)]


def test_young_waits_are_looked_at_often(world: World) -> None:
    """A wait is looked at every tenth of a second for as long as it is young."""
    world.wait_for("old")
    world.sweeps(20, "old")
    world.wait_for("young")
    seen = world.sweeps(YOUNG, "young")
    assert seen[0] <= SHORTEST + 0.02
    assert max(gaps(seen)) <= SHORTEST + 0.02
    assert len(seen) >= 10


def test_intervals_grow(world: World) -> None:
    """While push delivers, an old wait is looked at ever less often, but at least every 2 s."""
    world.wait_for("old")
    between = gaps(world.sweeps(30, "old"))
    assert between[-5:] == pytest.approx([LONGEST] * 5, abs=0.02)
    assert between[0] <= 2 * SHORTEST


def test_young_ones_do_not_make_old_ones_swept(world: World) -> None:
    """Looks at young waits leave the old ones alone."""
    world.wait_for("old")
    world.sweeps(20, "old")
    world.wait_for("young")
    assert len(world.sweeps(LONGEST - 0.1, "old")) <= 1


def test_without_push_everything_is_swept_often(world: World) -> None:
    """Where nothing is pushed, everything is looked at every tenth of a second, not more."""
    world.wait_for("old")
    world.sweeps(20, "old")
    between = gaps(world.sweeps(3, "old", pushing=False))
    assert min(between) >= SHORTEST - 0.01
    assert max(between) <= SHORTEST + 0.02


def test_a_miss_brings_distrust(world: World) -> None:
    """A result that only a sweep found has everything looked at often, for a while."""
    world.wait_for("missed", "old")
    world.sweeps(20, "old")
    world.finds("missed")
    assert world.schedule.next_due(world.now) <= SHORTEST
    between = gaps(world.sweeps(DISTRUST, "old"))
    assert max(between[2:]) <= SHORTEST + 0.02
    world.sweeps(20, "old")
    assert gaps(world.sweeps(10, "old"))[-1] == pytest.approx(LONGEST, abs=0.02)


def test_no_distrust_when_push_brings_it_just_after(world: World) -> None:
    """A sweep that was a moment faster than push says nothing against push."""
    world.wait_for("found", "old")
    world.sweeps(20, "old")
    world.finds("found")
    world.schedule.pushed("found")
    assert gaps(world.sweeps(10, "old")) == pytest.approx([LONGEST] * 4, abs=0.02)


def test_no_distrust_for_what_is_not_ready(world: World) -> None:
    """States that end no wait are not missed results."""
    world.wait_for("started", "old")
    world.sweeps(20, "old")
    world.schedule.looked(["started"], [ResultDocument("started", "STARTED")], world.now)
    assert gaps(world.sweeps(10, "old")) == pytest.approx([LONGEST] * 4, abs=0.02)


def test_no_distrust_for_the_time_without_push(world: World) -> None:
    """What a sweep finds while push is away, or just begins, is not push's fault."""
    world.wait_for("found", "old")
    world.sweeps(20, "old")
    world.sweeps(0.5, "old", pushing=False)
    world.finds("found")
    world.schedule.reset(world.now)
    world.finds("found")
    assert gaps(world.sweeps(20, "old"))[-3:] == pytest.approx([LONGEST] * 3, abs=0.02)


def test_reset(world: World) -> None:
    """After a reconnect everything is looked at at once."""
    world.wait_for("old")
    world.sweeps(20, "old")
    world.schedule.reset(world.now)
    assert world.sweeps(1, "old")[0] == 0


def test_next_due(world: World) -> None:
    """How long there is nothing to do is known, and never negative."""
    world.wait_for("old")
    world.sweeps(20, "old")
    due = world.schedule.next_due(world.now)
    assert 0 <= due <= LONGEST
    assert world.schedule.next_due(world.now + 99) == 0
    seen = world.sweeps(due + 0.02, "old")
    assert len(seen) == 1


def test_look_soon(world: World) -> None:
    """A new wait where nothing is pushed is looked at without delay."""
    world.wait_for("old")
    world.sweeps(5, "old", pushing=False)
    world.wait_for("new")
    world.schedule.look_soon()
    assert world.sweeps(0.1, "new", pushing=False)[0] == 0


def test_sweeps_leave_time_for_the_rest(world: World) -> None:
    """Slow sweeps come less often: they take a bounded part of the reader's time."""
    world.wait_for("old")
    assert world.schedule.due(world.table, world.now, pushing=False)
    world.schedule.took(1.0)
    assert world.sweeps(2.9, "old", pushing=False) == []
    assert world.sweeps(2, "old", pushing=False) != []


def test_command_size_adapts(world: World) -> None:
    """Many keys a command while nothing is there, few while results are large."""
    first = world.schedule.chunk
    many = [str(number) for number in range(10_000)]
    for _ in range(20):
        world.schedule.looked(many, [], world.now)
    largest = world.schedule.chunk
    assert first < largest < 10_000
    large = [ResultDocument("a", "STARTED", size=9 * 1024 * 1024)]
    for _ in range(20):
        world.schedule.looked(many, large, world.now)
    assert world.schedule.chunk == 1


def asked(world: World, task_ids: list[str], refused: set[str]) -> tuple[set[str], list[int]]:
    """Sweep once against a server that answers nothing where a task of *refused* is in it."""
    seen: set[str] = set()
    sizes = []
    for piece in world.schedule.pieces(task_ids):
        sizes.append(len(piece))
        if refused.intersection(piece):
            world.schedule.unanswered(piece)
            break
        world.schedule.looked(piece, [], world.now)
        seen.update(piece)
    return seen, sizes


@pytest.mark.parametrize("position", [0, 57, 499])
def test_what_is_not_answered_for_keeps_no_others_waiting(world: World, position: int) -> None:
    """A result that cannot be had is asked for last and alone; the others are all looked at."""
    ids = [str(number) for number in range(500)]
    bad = {ids[position]}
    seen: set[str] = set()
    for _ in range(12):
        seen |= asked(world, ids, bad)[0]
    assert seen == set(ids) - bad
    found, sizes = asked(world, ids, bad)
    assert found == set(ids) - bad
    assert sizes[-1] == 1
    assert len(sizes) <= 4
    # Had after all, it is one of many again.
    asked(world, ids, set())
    assert len(asked(world, ids, set())[1]) == 1


def test_a_server_that_answered_nothing_for_a_while(world: World) -> None:
    """After an outage everything is looked at in a dozen commands, not one by one."""
    ids = [str(number) for number in range(4000)]
    for _ in range(20):
        asked(world, ids, set(ids))
    found, sizes = asked(world, ids, set())
    assert found == set(ids)
    assert len(sizes) <= 25


def test_nothing_is_kept_of_what_nobody_waits_for(world: World) -> None:
    """What was not answered for is forgotten with its wait."""
    world.schedule.unanswered(["gone", "old"])
    world.wait_for("old")
    assert world.sweeps(0.5, "old") != []
    assert list(world.schedule._unanswered) == ["old"]
