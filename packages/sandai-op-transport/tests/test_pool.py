"""The threads' pool: leases within the budget, and every permit comes back."""

import threading
import time
from collections.abc import Iterator

import pytest

from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import IDLE_SECONDS, ConnectionPool, Limiter, _janitor, _pool


class Connection:
    """Stands for an open socket."""

    stale = False
    closed = False


class Opener:
    """Opens connections that a test looks at afterwards."""

    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.timeouts: list[float | None] = []
        self.failure: BaseException | None = None
        self.close_failure: BaseException | None = None

    def open(self, timeout: float | None) -> Connection:
        if self.failure is not None:
            raise self.failure
        self.timeouts.append(timeout)
        self.opened.append(Connection())
        return self.opened[-1]

    def usable(self, connection: Connection) -> bool:
        return not connection.stale

    def close(self, connection: Connection) -> None:
        connection.closed = True
        if self.close_failure is not None:
            raise self.close_failure


class World:
    """A pool of two, its limiter and its opener."""

    def __init__(self) -> None:
        self.opener = Opener()
        self.limiter = Limiter("broker", 2)
        self.pool = ConnectionPool(self.limiter, self.opener)

    @property
    def counts(self) -> tuple[int, int]:
        """How many connections are in use, and idle."""
        now = self.limiter.statistics()
        return now.in_use, now.idle


@pytest.fixture
def world() -> Iterator[World]:
    """Yield a pool that is closed afterwards."""
    world = World()
    yield world
    world.opener.close_failure = None
    world.pool.close()
    assert world.counts == (0, 0)


def test_connections_are_used_again(world: World) -> None:
    """A healthy connection stays open for the next lease."""
    with world.pool.lease(0) as first:
        assert world.counts == (1, 0)
    with world.pool.lease(0) as second:
        assert second is first
    assert world.counts == (0, 1)


def test_stale_connection_is_replaced(world: World) -> None:
    """A connection that the server closed meanwhile is closed and replaced."""
    with world.pool.lease(0) as first:
        pass
    first.stale = True
    with world.pool.lease(0) as second:
        assert second is not first
        assert first.closed
        assert world.counts == (1, 0)


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_failing_opener_gives_the_permit_back(world: World, failure: type[BaseException]) -> None:
    """Whatever happens while opening, the permit comes back."""
    world.opener.failure = failure()
    for _ in range(3):
        with pytest.raises(failure), world.pool.lease(0):
            pass
    assert world.counts == (0, 0)


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt, GeneratorExit])
def test_failed_connection_is_closed(world: World, failure: type[BaseException]) -> None:
    """A connection whose user failed, in mid-read perhaps, is not used again."""
    with pytest.raises(failure), world.pool.lease(0) as connection:
        raise failure
    assert connection.closed
    assert world.counts == (0, 0)


def test_close_that_fails(world: World) -> None:
    """A connection that cannot even be closed gives its permit back."""
    world.opener.close_failure = OSError()
    with pytest.raises(ValueError, match="user"), world.pool.lease(0):
        raise ValueError("user")
    assert world.counts == (0, 0)


def test_interrupt_while_closing(world: World) -> None:
    """Ctrl-C in the middle of closing loses no permit, wherever it is closed."""
    other = ConnectionPool(world.limiter, Opener())
    for _ in range(2):
        with world.pool.lease(0):
            pass
        world.opener.close_failure = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt), world.pool.permit(0):
            pass
        world.opener.close_failure = None
        with world.pool.lease(0), world.pool.lease(0):
            pass
        world.opener.close_failure = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt), other.lease(0):
            pass
        with pytest.raises(KeyboardInterrupt):
            world.pool.close_idle(time.monotonic())
        world.opener.close_failure = None
        assert world.counts == (0, 0)
    other.close()


def test_full_pool(world: World) -> None:
    """Beyond the limit a caller waits, then is told."""
    full = pytest.raises(ClientPoolTimeoutError)
    with world.pool.lease(0), world.pool.lease(0), full, world.pool.lease(0.01):
        pass
    assert world.counts == (0, 2)


def test_permit_without_a_connection(world: World) -> None:
    """A permit for a connection of another kind makes room by closing an idle one."""
    with world.pool.lease(0) as connection:
        pass
    with world.pool.permit(0):
        assert connection.closed
        assert world.counts == (1, 0)
    assert world.counts == (0, 0)


def test_own_limit_gets_a_connection_of_its_own(world: World) -> None:
    """A connection opened within a caller's shorter limit is not imposed on others."""
    with world.pool.lease(0) as connection:
        pass
    with world.pool.lease(0, io_timeout=0.1) as hasty:
        assert hasty is not connection
        assert world.opener.timeouts == [None, 0.1]
    assert hasty.closed
    assert world.counts[0] == 0


def test_other_owner_evicts(world: World) -> None:
    """A pool that shares the limiter gets the place of an idle connection."""
    other = ConnectionPool(world.limiter, Opener())
    with world.pool.lease(0) as first, world.pool.lease(0):
        pass
    with other.lease(0):
        assert world.counts == (1, 1)
    # The last one of the with statement came back first: it is idle longest.
    assert [connection.closed for connection in world.opener.opened] == [False, True]
    assert not first.closed
    other.close()


def test_idle_connections_are_closed_in_time(world: World) -> None:
    """What is idle for IDLE_SECONDS is closed, nothing before."""
    with world.pool.lease(0) as connection:
        pass
    now = time.monotonic()
    assert world.pool.tend(now) is True
    assert world.pool.tend(now + IDLE_SECONDS - 1) is True
    assert world.counts == (0, 1)
    assert world.pool.tend(now + IDLE_SECONDS) is False
    assert connection.closed
    assert world.counts == (0, 0)


def test_janitor_closes_idle_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle pool is emptied by itself, and the janitor's thread ends."""
    monkeypatch.setattr(_pool, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(_janitor, "_INTERVAL", 0.01)
    with world.pool.lease(0) as connection:
        pass
    thread = _janitor._thread
    assert thread is not None
    thread.join(10)
    assert connection.closed
    assert world.counts == (0, 0)
    assert _janitor._thread is None


def test_close(world: World) -> None:
    """Closing closes idle connections at once and busy ones when they come back."""
    with world.pool.lease(0) as busy:
        with world.pool.lease(0) as idle:
            pass
        world.pool.close()
        assert (idle.closed, busy.closed) == (True, False)
    assert busy.closed
    assert world.counts == (0, 0)


def test_many_threads(world: World) -> None:
    """Under pressure no more connections are open than the limit says."""
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        for _ in range(50):
            with world.pool.lease(10):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.opener.opened) <= 2
