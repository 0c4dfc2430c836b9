"""A connection to ``memory://``, command by command, and the thread behind it."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from sandai.op.transport import RedisConnection, RedisConnector, TransportError, read_reply
from sandai.op.transport._redis_push import PUSH_ONCE
from sandai.op.transport._url import RedisAddress
from sandai.op.transport.testing import World, world
from sandai.op.transport.testing._world import forget

WAIT = 10.0


def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds; only for what has no event to wait for."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def server_threads() -> list[threading.Thread]:
    """Return the threads that serve memory://."""
    return [thread for thread in threading.enumerate() if thread.name == "sandai-op-memory"]


class Line:
    """A connection, and asking over it."""

    def __init__(self, url: str, protocol: int = 3, side: str = "broker") -> None:
        address = RedisAddress.parse("broker_url", url, {})
        self.connector = RedisConnector(address, WAIT, f"sandai-op:{side}:1")
        self.connection: RedisConnection = self.connector.open(protocol=protocol)

    def __call__(self, *command: Any) -> Any:
        """Send a command and return its reply; an error as it is, not raised."""
        self.connection.send_packed_command(self.connection.pack_commands([command]))
        try:
            return read_reply(self.connection, push_request=True)
        except AuthenticationError as error:
            return error

    def next(self) -> Any:
        """Return what comes next."""
        return read_reply(self.connection, push_request=True)

    def close(self) -> None:
        """Close."""
        self.connection.disconnect()


@pytest.fixture
def here() -> Iterator[World]:
    """Give a world of the test's own."""
    found = world(f"memory://{uuid4()}")
    yield found
    forget(found.name)


@pytest.fixture(params=[2, 3])
def line(request: pytest.FixtureRequest, here: World) -> Iterator[Line]:
    """Give a connection in each version of the protocol."""
    line = Line(here.url, request.param)
    yield line
    line.close()


def test_nothing_of_a_connection_is_left(here: World) -> None:
    """The thread begins with the first connection and ends with the last."""
    until(lambda: not server_threads())
    lines = [Line(here.url) for _ in range(5)]
    [thread] = server_threads()
    assert thread.daemon
    assert len(here.peers) == 5
    for line in lines:
        assert line("PING") in (b"PONG", "PONG")
        line.close()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert not here.peers
    again = Line(here.url)
    assert again("LLEN", "q") == 0
    again.close()


def test_many_come_and_go(here: World) -> None:
    """Connections that come while the thread is about to end are served."""
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(100):
                line = Line(here.url)
                assert line("SET", "k", "v") in (b"OK", "OK")
                line.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not failures
    until(lambda: not server_threads())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("GETDEL", "k"), "unknown command 'getdel'"),
        (("LPUSH", "k"), "wrong number of arguments for 'lpush'"),
        (("SELECT", "1"), "DB index is out of range"),
        (("SET", "k", "v", "EX", "0"), "invalid expire time"),
        (("SET", "k", "v", "EX", "x"), "not an integer"),
        (("SET", "k", "v", "WHAT"), "syntax error"),
        (("EVAL", "return 1", "0"), "unknown script"),
        (("EVALSHA", "0" * 40, "0"), "No matching script"),
        (("CLIENT", "LIST"), "unknown subcommand"),
        (("AUTH", "secret"), "without any password"),
        (("HELLO", "4"), "unsupported protocol version"),
        (("EXEC",), "EXEC without MULTI"),
    ],
)
def test_refusals(line: Line, command: tuple[Any, ...], said: str) -> None:
    """What it does not know it says, and the connection goes on."""
    reply = line(*command)
    assert isinstance(reply, ResponseError | AuthenticationError)
    assert said in str(reply)
    assert line("EXISTS", "k") == 0


def test_a_transaction(line: Line) -> None:
    """MULTI queues, EXEC does all of it; what is wrong in it undoes it all."""
    assert line("MULTI") in (b"OK", "OK")
    assert line("LPUSH", "q", "a") in (b"QUEUED", "QUEUED")
    assert line("LREM", "q", 1, "a") in (b"QUEUED", "QUEUED")
    assert line("EXEC") == [1, 1]
    line("MULTI")
    line("SET", "k", "v")
    assert isinstance(line("NONSENSE"), ResponseError)
    assert "previous errors" in str(line("EXEC"))
    assert line("GET", "k") is None


def test_wrong_types_are_errors_of_their_command(line: Line) -> None:
    """An LPUSH to a string is refused, alone and in a transaction."""
    line("SET", "k", "v")
    assert "WRONGTYPE" in str(line("LPUSH", "k", "a"))
    line("MULTI")
    line("LPUSH", "k", "a")
    line("LPUSH", "q", "a")
    refused, done = line("EXEC")
    assert "WRONGTYPE" in str(refused)
    assert done == 1


def test_the_script_pushes_each_message_once(here: World, line: Line) -> None:
    """The one script that our broker sends is known, by its text and by its digest."""
    digest = line("SCRIPT", "LOAD", PUSH_ONCE)
    assert line("EVAL", PUSH_ONCE, 3, "q", "m1", "m2", 60_000, "a", "b") == 2
    assert line("EVALSHA", digest, 3, "q", "m2", "m3", 60_000, "b", "c") == 1
    assert here.store.values(b"q") == [b"c", b"b", b"a"]
    line("SET", "string", "v")
    assert "WRONGTYPE" in str(line("EVAL", PUSH_ONCE, 2, "string", "m4", 60_000, "d"))
    assert line("EXISTS", "m4") == 0


def test_push_in_resp3(here: World) -> None:
    """A subscribed connection takes commands and is pushed what is published, in order."""
    line, other = Line(here.url), Line(here.url, 2)
    assert line("SUBSCRIBE", "a", "b") == [b"subscribe", b"a", 1]
    assert line.next() == [b"subscribe", b"b", 2]
    assert line("GET", "k") is None
    assert other("PUBLISH", "a", "hello") == 1
    assert line.next() == [b"message", b"a", b"hello"]
    assert line("UNSUBSCRIBE", "a") == [b"unsubscribe", b"a", 1]
    assert other("PUBLISH", "a", "hello") == 0
    line.close()
    until(lambda: other("PUBLISH", "b", "x") == 0)
    other.close()
    assert not here.awaited()


def test_push_in_resp2(here: World) -> None:
    """In the older protocol a subscriber may do nothing else."""
    line = Line(here.url, 2)
    assert line("SUBSCRIBE", "a") == [b"subscribe", b"a", 1]
    assert isinstance(line("GET", "k"), ResponseError)
    here.publish(b"a", b"hello")
    assert line.next() == [b"message", b"a", b"hello"]
    assert line("PING") == [b"pong", b""]
    assert line("UNSUBSCRIBE") == [b"unsubscribe", b"a", 0]
    assert line("GET", "k") is None
    line.close()


def test_a_slow_reader_delays_nobody(here: World) -> None:
    """While one connection leaves megabytes unread, another is served; then it gets them all."""
    slow, quick = Line(here.url), Line(here.url)
    value = b"x" * 1_000_000
    quick("SET", "k", value)
    slow.connection.send_packed_command(slow.connection.pack_commands([("GET", "k")] * 10))
    for _ in range(20):
        assert quick("EXISTS", "k") == 1
    assert all(slow.next() == value for _ in range(10))
    slow.close()
    quick.close()


def test_a_subscriber_that_reads_nothing_is_dropped(here: World) -> None:
    """Redis drops a subscriber beyond 32 MiB unread, and so does this: memory is bounded."""
    line = Line(here.url)
    line("SUBSCRIBE", "a")
    for _ in range(80):
        here.publish(b"a", b"x" * 1_000_000)
    until(lambda: not here.peers)
    assert not here.awaited()
    line.close()


def test_what_is_no_redis_protocol_ends_the_connection(here: World) -> None:
    """Bytes that make no command end their own connection alone."""
    line, other = Line(here.url), Line(here.url)
    line.connection.send_packed_command([b"$nonsense\r\n"])
    with pytest.raises(RedisError):
        line.next()
    assert other("EXISTS", "k") == 0
    other.close()


def test_quit(line: Line) -> None:
    """QUIT is answered, and the connection ends."""
    assert line("QUIT") in (b"OK", "OK")
    with pytest.raises(RedisError):
        line("PING")


def test_worlds_see_nothing_of_each_other(here: World) -> None:
    """Neither keys nor what is published are seen from another URL."""
    line, other = Line(here.url), Line(f"{here.url}/other")
    line("SET", "k", "v")
    other("SUBSCRIBE", "a")
    assert line("PUBLISH", "a", "x") == 0
    assert other("GET", "k") is None
    line.close()
    other.close()
    forget(f"{here.name}/other")


def test_a_refused_connection_is_told_as_a_servers(here: World) -> None:
    """The error names the URL and what the system says of a closed port."""
    with (
        here.outage("refused"),
        pytest.raises(TransportError, match=rf"{here.url} failed: .*Connection refused"),
    ):
        Line(here.url)
