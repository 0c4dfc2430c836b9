"""What a world stores: strings that expire, and lists that shrink."""

import pytest

from sandai.op.transport.testing._store import Store, WrongType


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    """Return an empty store."""
    return Store(clock)


def test_strings(store: Store) -> None:
    """What is set can be read, replaced and deleted."""
    store.set(b"a", b"1")
    store.set(b"a", b"2")
    assert store.get(b"a") == b"2"
    assert store.get_many([b"a", b"b", b"a"]) == [b"2", None, b"2"]
    assert store.delete([b"a", b"a", b"b"]) == 1
    assert store.get(b"a") is None
    assert len(store) == 0


def test_expiry(store: Store, clock: Clock) -> None:
    """A value is there until its time, for every way of asking."""
    store.set(b"a", b"1", 10)
    clock.now += 9.9
    assert store.get(b"a") == b"1"
    assert store.exists(b"a")
    clock.now += 0.1
    assert not store.exists(b"a")
    store.set(b"a", b"1", 10)
    clock.now += 10
    assert store.get(b"a") is None
    store.set(b"a", b"1", 10)
    clock.now += 10
    assert store.get_many([b"a"]) == [None]
    store.set(b"a", b"1", 10)
    clock.now += 10
    assert store.delete([b"a"]) == 0
    store.set(b"a", b"1", 10)
    clock.now += 10
    assert store.push(b"a", [b"x"]) == 1


def test_a_value_that_is_set_again_begins_anew(store: Store, clock: Clock) -> None:
    """The last SET's expiry holds, and none if it has none."""
    store.set(b"a", b"1", 10)
    store.set(b"a", b"2", 20)
    clock.now += 15
    assert store.get(b"a") == b"2"
    store.set(b"a", b"3")
    clock.now += 1000
    assert store.get(b"a") == b"3"


def test_what_nobody_reads_is_swept_out(store: Store, clock: Clock) -> None:
    """Values that are never asked for do not stay: memory follows what is alive."""
    for number in range(100_000):
        store.set(b"%d" % number, b"value", 10)
        clock.now += 0.01
    assert len(store._strings) <= 2 * 1000 + 1
    assert len(store._strings) == len(store._expiries)
    clock.now += 10
    assert store.keys() == []


def test_lists(store: Store) -> None:
    """A list is pushed to at its head and popped from its tail; empty it is no key."""
    assert store.push(b"q", [b"1", b"2"]) == 2
    assert store.push(b"q", [b"3"]) == 3
    assert store.values(b"q") == [b"3", b"2", b"1"]
    assert store.length(b"q") == 3
    assert [store.pop(b"q") for _ in range(4)] == [b"1", b"2", b"3", None]
    assert not store.exists(b"q")
    assert len(store) == 0


@pytest.mark.parametrize(
    ("count", "removed", "left"),
    [
        (1, 1, [b"b", b"a", b"c", b"a"]),
        (2, 2, [b"b", b"c", b"a"]),
        (-1, 1, [b"a", b"b", b"a", b"c"]),
        (-2, 2, [b"a", b"b", b"c"]),
        (0, 3, [b"b", b"c"]),
        (9, 3, [b"b", b"c"]),
    ],
)
def test_remove(store: Store, count: int, removed: int, left: list[bytes]) -> None:
    """LREM takes out so many from the head, from the tail, or all."""
    store.push(b"q", [b"a", b"c", b"a", b"b", b"a"])
    assert store.remove(b"q", count, b"a") == removed
    assert store.values(b"q") == left
    assert store.remove(b"none", 1, b"a") == 0


def test_removing_the_last_removes_the_list(store: Store) -> None:
    """A list that LREM empties is no key."""
    store.push(b"q", [b"a"])
    assert store.remove(b"q", 1, b"a") == 1
    assert store.keys() == []


def test_kinds(store: Store) -> None:
    """A string is no list and a list no string; SET and MGET mind neither, as in Redis."""
    store.push(b"q", [b"1"])
    store.set(b"s", b"1")
    with pytest.raises(WrongType):
        store.get(b"q")
    for call in (store.length, store.values):
        with pytest.raises(WrongType):
            call(b"s")
    with pytest.raises(WrongType):
        store.push(b"s", [b"1"])
    assert store.get_many([b"q", b"s"]) == [None, b"1"]
    store.set(b"q", b"2")
    assert store.get(b"q") == b"2"
