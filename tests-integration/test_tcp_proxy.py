"""The proxy of the fault tests does what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tcp_proxy import HOST, Cut, Entry, TcpProxy, Way
from watching import eventually


class Echo:
    """A server that answers whatever it gets with the same, and counts it."""

    def __init__(self) -> None:
        self.received = 0
        self.open = 0
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        self.open += 1
        with connection:
            try:
                while data := connection.recv(65536):
                    self.received += len(data)
                    connection.sendall(data)
            except OSError:
                pass
        self.open -= 1

    def close(self) -> None:
        """End; the connections have ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Give a server."""
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    """Give a proxy in front of it."""
    with TcpProxy(HOST, echo.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    """Give a connection through the proxy."""
    with connect(proxy) as client:
        assert ask(client) == b"hello"
        yield client


def connect(proxy: TcpProxy) -> socket.socket:
    """Connect through the proxy."""
    return socket.create_connection((HOST, proxy.port), timeout=2)


def ask(client: socket.socket, data: bytes = b"hello") -> bytes:
    """Send something and return what comes back, of the same length unless it is cut."""
    client.sendall(data)
    answer = b""
    while len(answer) < len(data) and (more := client.recv(65536)):
        answer += more
    return answer


def assert_silent(client: socket.socket) -> None:
    """Nothing comes, and no end either."""
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_it_forwards(echo: Echo, proxy: TcpProxy) -> None:
    """Bytes come whole, an end is passed on, and the counters tell of it."""
    data = bytes(range(256)) * 20_000
    with connect(proxy) as client, connect(proxy) as other:
        assert ask(other) == b"hello"
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(ask(other, data)))
        reader.start()
        assert ask(client) == ask(client) == b"hello"
        reader.join(5)
        assert received == [data]
        assert proxy.open == proxy.accepted == 2
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    eventually(lambda: echo.open == proxy.open == 0, within=2)
    assert (proxy.accepted, proxy.ended, proxy.cuts) == (2, 2, 0)


def test_routes(proxy: TcpProxy) -> None:
    """The ports of a connection's two ends, as long as it lasts."""
    with socket.create_server((HOST, 0)) as server:
        proxy.target = server.getsockname()
        with connect(proxy) as client:
            accepted, (_, port) = server.accept()
            with accepted:
                assert proxy.routes() == {port: client.getsockname()[1]}
    eventually(lambda: proxy.routes() == {}, within=2)


def test_round_trips(proxy: TcpProxy, client: socket.socket) -> None:
    """A round trip is a request after a reply."""
    before = proxy.round_trips
    for _ in range(3):
        ask(client)
    assert proxy.round_trips == before + 3


def test_delay(proxy: TcpProxy, client: socket.socket) -> None:
    """A delay is added each way, and holds up nothing but the bytes."""
    proxy.delay = 0.2
    began = time.monotonic()
    for letter in b"abcde":
        client.sendall(bytes([letter]))
        time.sleep(0.01)  # in pieces of their own, and before the first is there
    answer = b""
    while len(answer) < 5:
        answer += client.recv(5)
    assert answer == b"abcde"
    # One after the other they would take two seconds.
    assert 0.4 <= time.monotonic() - began < 1.0


def test_rate(proxy: TcpProxy, client: socket.socket) -> None:
    """Twenty kilobytes at a hundred a second take a fifth of a second."""
    proxy.rate = 100_000
    began = time.monotonic()
    assert len(ask(client, bytes(20_000))) == 20_000
    assert 0.15 <= time.monotonic() - began < 0.6


@pytest.mark.parametrize("how", [Cut.RESET, Cut.FIN])
def test_cut(echo: Echo, proxy: TcpProxy, client: socket.socket, how: Cut) -> None:
    """A cut ends both sides of what is open, by RST or FIN, and nothing else."""
    assert proxy.cut(how) == 1
    if how is Cut.RESET:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    else:
        assert client.recv(1) == b""
    eventually(lambda: echo.open == 0, within=2)
    assert (proxy.open, proxy.cuts) == (0, 1)
    with connect(proxy) as another:
        assert ask(another) == b"hello"


def test_refused(proxy: TcpProxy, client: socket.socket) -> None:
    """Where connections are refused the open ones go on, and the port is kept."""
    for _ in range(3):
        proxy.entry = Entry.REFUSED
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert ask(client) == b"hello"
        proxy.entry = Entry.OPEN
        with connect(proxy) as another:
            assert ask(another) == b"hello"


def test_accepted_and_silent(echo: Echo, proxy: TcpProxy) -> None:
    """A connection that was accepted to be silent stays so until it is cut."""
    proxy.entry = Entry.SILENT
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert_silent(client)
        proxy.heal()
        assert_silent(client)
        assert echo.received == 0
        assert proxy.open == 1
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("way", [Way.BOTH, Way.REQUESTS, Way.REPLIES])
def test_black_hole(echo: Echo, proxy: TcpProxy, client: socket.socket, way: Way) -> None:
    """What is swallowed comes through in one direction or none, and nobody hears of an end."""
    before = echo.received
    proxy.black_hole(way)
    client.sendall(b"hello")
    assert_silent(client)
    assert echo.received - before == (5 if way is Way.REPLIES else 0)
    client.close()
    time.sleep(0.05)  # an end that was passed on would be there
    assert echo.open == (0 if way is Way.REPLIES else 1)
    with connect(proxy) as another:
        assert ask(another) == b"hello"


@pytest.mark.parametrize("how", Cut)
def test_dropped_replies(echo: Echo, proxy: TcpProxy, client: socket.socket, how: Cut) -> None:
    """The request reaches the server, its reply does not reach the client."""
    before = echo.received
    proxy.drop_replies = how
    client.sendall(b"hello")
    if how is Cut.RESET:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    elif how is Cut.FIN:
        assert client.recv(1) == b""
    else:
        assert_silent(client)
        proxy.heal()
        assert ask(client, b"again") == b"again"
        before += 5
    assert echo.received == before + 5


@pytest.mark.parametrize("way", [Way.REQUESTS, Way.REPLIES])
@pytest.mark.parametrize("how", Cut)
def test_cut_after(echo: Echo, proxy: TcpProxy, client: socket.socket, way: Way, how: Cut) -> None:
    """So many bytes pass, and then one connection is cut."""
    before = echo.received
    proxy.cut_after(7, way, how)
    assert ask(client) == b"hello"
    client.sendall(b"hello")
    came = b""
    client.settimeout(0.2)
    try:
        while more := client.recv(10):
            came += more
    except (ConnectionResetError, TimeoutError):
        pass
    eventually(lambda: echo.received == before + (7 if way is Way.REQUESTS else 10), within=1)
    if way is Way.REPLIES and how is not Cut.RESET:
        assert came == b"he"
    assert proxy.cuts == 1
    with connect(proxy) as another:
        for _ in range(5):
            assert ask(another) == b"hello"


def test_a_server_that_is_gone() -> None:
    """Without a server behind it a connection is reset."""
    with TcpProxy(HOST, 1) as gone:
        # That may come before connect() has returned.
        with pytest.raises(ConnectionResetError), connect(gone) as client:
            client.recv(1)
        eventually(lambda: gone.ended == 1, within=1)


def test_leaving_ends_everything(echo: Echo) -> None:
    """Left, it has no thread and no connection, whatever these were."""
    with TcpProxy(HOST, echo.port) as proxy, connect(proxy) as client, connect(proxy) as hole:
        ask(client)
        ask(hole)
        proxy.black_hole()
        proxy.entry = Entry.SILENT
        with connect(proxy):
            eventually(lambda: proxy.open == 3, within=1)
    eventually(lambda: echo.open == 0, within=1)
    assert proxy.open == 0
    assert "tcp-proxy" not in [thread.name for thread in threading.enumerate()]
