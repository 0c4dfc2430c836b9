"""Streams: what may be out, what may be yielded, and when."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.models import (
    BatchTaskResult,
    ClientPoolTimeoutError,
    ConfigurationError,
    InvalidResultFormatError,
    InvalidTaskError,
    OperatorConnectionError,
    TaskResult,
    TaskTimeoutError,
)
from sandai.op.models.stream import MOST, Arrivals, Window, check_arguments

AWAY = OperatorConnectionError("op", "v1", "away")


def add(
    window: Window, queued: Sequence[str | Exception], deadline: float = math.inf, now: float = 0
) -> list[str]:
    """Take tasks, and say what became of them."""
    window.taken += len(queued)
    return window.add(queued, deadline, now)


def drained(window: Window) -> list[int]:
    """Return the indices of what can be yielded now."""
    indices = []
    while (result := window.pop()) is not None:
        indices.append(result.index)
    return indices


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "8", None, math.nan])
def test_the_window_is_a_positive_whole_number(wrong: Any) -> None:
    """Anything else is refused, and named."""
    with pytest.raises(ConfigurationError) as caught:
        check_arguments(wrong, None)
    assert caught.value.setting == "max_in_flight"
    assert check_arguments(7, 0.5) == 7
    assert check_arguments(1, None) == 1


@pytest.mark.parametrize("wrong", [0, 0.0, -1, "3", True, math.nan])
def test_a_stream_does_not_just_look(wrong: Any) -> None:
    """A timeout of 0 would be one look at a task that has just been submitted."""
    with pytest.raises(ConfigurationError) as caught:
        check_arguments(1, wrong)
    assert caught.value.setting == "timeout"


@pytest.mark.parametrize("ordered", [False, True])
def test_an_id_that_is_out_twice(ordered: bool) -> None:
    """It has one outcome, which fills all of its places; it is watched once."""
    window = Window(4, ordered)
    assert add(window, ["a", "a", "b"], 10) == ["a", "b"]
    assert add(window, ["a"], 20) == []
    assert window.overdue(15) == ["b"]
    window.accept("b", TaskResult())
    window.accept("a", TaskResult())
    assert sorted(drained(window)) == [0, 1, 2, 3]
    assert window.empty
    assert not list(window)


def test_an_id_whose_late_result_is_coming() -> None:
    """Given again meanwhile, it is not watched: the result that comes fills both places."""
    window = Window(4)
    add(window, ["a"], 1)
    window.expire(window.overdue(2), set(), TaskTimeoutError)
    assert add(window, ["a"], 3) == []
    window.accept("a", TaskResult())
    assert drained(window) == [0, 1]
    assert window.empty


def test_results_come_out_as_they_come_in() -> None:
    """Unordered, whoever is done is yielded; the index says which it is."""
    window = Window(3)
    assert window.wanted(0) == 3
    assert add(window, ["a", "b", "c"]) == ["a", "b", "c"]
    assert [*window] == ["a", "b", "c"]
    assert window.wanted(0) == 0
    assert window.pop() is None
    window.accept("c", TaskResult([{"uri": "c"}], {"n": 2}))
    window.accept_reply("a", lambda: {"status": "success", "results": {"n": 0}})
    assert window.pop() == BatchTaskResult(2, "c", True, [{"uri": "c"}], {"n": 2})
    assert window.pop() == BatchTaskResult(0, "a", True, [], {"n": 0})
    assert window.wanted(0) == 2
    assert not window.empty


def test_in_order_one_slow_task_holds_the_others() -> None:
    """Ordered, what is done behind a slow one is held, and counts as taken."""
    window = Window(3, ordered=True)
    add(window, ["a", "b", "c"])
    window.accept("c", TaskResult())
    window.accept("b", TaskResult())
    assert drained(window) == []
    assert window.wanted(0) == 0
    window.accept("a", TaskResult())
    assert drained(window) == [0, 1, 2]
    assert window.empty
    assert window.wanted(0) == 3


def test_what_was_not_submitted_is_a_result() -> None:
    """An error takes its place; one in doubt has its id, and is not waited for."""
    window = Window(4, ordered=True)
    wrong, doubt = InvalidTaskError("tasks[0]", "no"), OperatorConnectionError("op", "v1", "?", "x")
    assert add(window, [wrong, "b", doubt]) == ["b"]
    assert window.pop() == BatchTaskResult(0, None, False, error=wrong)
    assert window.pop() is None
    window.accept("b", TaskResult())
    assert window.pop() == BatchTaskResult(1, "b", True)
    assert window.pop() == BatchTaskResult(2, "x", False, error=doubt)
    assert [*window] == []


def test_a_reply_that_cannot_be_read_is_an_error_of_its_task() -> None:
    """What decoding raises stands in the result; what nobody waits for is ignored."""
    window = Window(1)
    add(window, ["a"])
    window.accept_reply("a", lambda: "no mapping")
    window.accept_reply("a", lambda: pytest.fail("read again"))
    window.accept("b", TaskResult())
    result = window.pop()
    assert result is not None
    assert isinstance(result.error, InvalidResultFormatError)
    assert window.pop() is None


def test_each_task_has_its_own_deadline() -> None:
    """Those whose time is up are told, the oldest first, and when to look next."""
    window = Window(8)
    add(window, ["a", "b"], 10, 0)
    add(window, ["c"], 12, 2)
    assert window.wake_at(more=True) == -math.inf
    assert window.wake_at(more=False) == 10
    assert window.overdue(9.9) == []
    assert window.overdue(10) == ["a", "b"]
    for _ in range(2):
        window.expire(["a", "b"], {"a"}, lambda task_id: TaskTimeoutError(task_id, 10))
    assert window.overdue(11) == []
    assert window.wake_at(more=False) == 12
    assert [*window] == ["c", "b"]
    window.accept("b", TaskResult())
    assert drained(window) == [0, 1]
    window.accept("c", TaskResult())
    assert window.wake_at(more=False) == math.inf


def test_what_is_ready_goes_before_a_few_more() -> None:
    """Tasks are taken many at a time, unless there is nothing to yield meanwhile."""
    window = Window(100)
    add(window, [str(n) for n in range(100)])
    for n in range(60):
        window.accept(str(n), TaskResult())
    wanted = []
    for _ in range(60):
        wanted.append(window.wanted(0))
        window.pop()
    assert wanted == [0] * 25 + [*range(25, 60)]
    assert window.wanted(0) == 60


def test_nobody_waits_for_a_slow_input() -> None:
    """While the input takes its time, it is asked when nothing is ready."""
    window = Window(4)
    add(window, ["a", "b"])
    window.slow = True
    window.accept("a", TaskResult())
    assert window.wanted(0) == 0
    window.pop()
    assert window.wanted(0) == 3


def test_a_large_window_is_filled_in_pieces() -> None:
    """The operator is at work while the next are prepared."""
    assert Window(10 * MOST).wanted(0) == MOST


def test_an_outage_does_not_use_up_the_input() -> None:
    """While submissions fail, one task at a time is tried, ever more seldom, up to a second."""
    window = Window(100)
    add(window, [AWAY] * 100)
    assert len(drained(window)) == 100
    now, pauses = 0.0, []
    for _ in range(8):
        then = window.wake_at(more=True)
        assert window.wake_at(more=False) == math.inf
        assert window.wanted(math.nextafter(then, 0)) == 0
        assert window.wanted(then) == 1
        pauses.append(round(then - now, 3))
        now = then
        add(window, [ClientPoolTimeoutError("broker", 1, 1) if now > 1 else AWAY], math.inf, now)
        drained(window)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1]
    now = window.wake_at(more=True)
    add(window, [InvalidTaskError("tasks[9]", "no")], math.inf, now)
    assert window.wanted(now) == 1
    add(window, ["a"], math.inf, now)
    drained(window)
    assert window.wanted(now) == 99


@given(data=st.data(), size=st.integers(1, 12), ordered=st.booleans(), total=st.integers(0, 40))
def test_any_course(data: st.DataObject, size: int, ordered: bool, total: int) -> None:
    """Whatever happens when: each task is yielded once, in order if so asked, in its window."""
    window = Window(size, ordered)
    out: list[int] = []
    yielded: list[BatchTaskResult] = []
    refused = set()
    late: set[str] = set()
    now = 0.0
    for _ in range(6 * total + 20):
        count = min(window.wanted(now), total - window.taken)
        waiting = [*window]
        assert len(waiting) <= window.taken - len(yielded) <= size
        ways = ["take"] * (count > 0) + ["reply", "late"] * bool(waiting) + ["yield", "tick"]
        match data.draw(st.sampled_from(ways)):
            case "take":
                first, number = window.taken, data.draw(st.integers(1, count))
                away = [data.draw(st.sampled_from([False, False, True])) for _ in range(number)]
                queued = [AWAY if away[n] else str(first + n) for n in range(number)]
                refused |= {first + n for n, each in enumerate(queued) if each is AWAY}
                ids = add(window, queued, now + 3, now)
                assert ids == [each for each in queued if isinstance(each, str)]
            case "reply":
                task_id = data.draw(st.sampled_from(waiting))
                window.accept(task_id, TaskResult(results={"n": task_id}))
                out.append(int(task_id))
            case "late":
                overdue = window.overdue(now)
                given_up = {task_id for task_id in overdue if data.draw(st.booleans())}
                late |= given_up
                window.expire(overdue, given_up, lambda task_id: TaskTimeoutError(task_id, 3))
            case "yield":
                if (result := window.pop()) is not None:
                    yielded.append(result)
            case _:
                now += 1
    while waiting := [*window]:
        window.accept(waiting[0], TaskResult(results={"n": waiting[0]}))
    while (result := window.pop()) is not None:
        yielded.append(result)
    assert window.empty
    indices = [result.index for result in yielded]
    assert sorted(indices) == [*range(window.taken)]
    if ordered:
        assert indices == sorted(indices)
    for result in yielded:
        assert result.submitted == (result.index not in refused)
        if result.success:
            assert result.results == {"n": str(result.index)}
        else:
            assert result.error is AWAY or str(result.index) in late


def test_arrivals_fill_every_place() -> None:
    """A task handed in twice is yielded twice; what was not submitted is told at once."""
    arrivals = Arrivals()
    doubt = OperatorConnectionError("op", "v1", "?", "x")
    for index, task_id, error in [(0, "a", None), (1, "b", None), (2, "a", None), (5, "x", doubt)]:
        arrivals.expect(index, task_id, error)
    arrivals.expect(6, None, None)
    assert [(each.index, each.task_id, each.submitted) for each in arrivals.failed] == [
        (5, "x", False),
        (6, None, False),
    ]
    assert arrivals.failed[0].error is doubt
    assert [*arrivals] == ["a", "b"]
    found = arrivals.accept_reply("a", lambda: {"status": "success", "results": {"n": 1}})
    assert found == [BatchTaskResult(n, "a", True, [], {"n": 1}) for n in (0, 2)]
    assert arrivals.accept_reply("a", lambda: pytest.fail("read again")) == []
    late = TaskTimeoutError("b", 1)
    assert arrivals.accept("b", late) == [BatchTaskResult(1, "b", True, error=late)]
    assert [*arrivals] == []
