"""What the tests of the asyncio client have in common: loops, and an eye on what blocks them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import uvloop

R = TypeVar("R")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(
    main: Coroutine[Any, Any, R],
    make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> R:
    """Run a coroutine as ``asyncio.run()`` does, on a loop of one's own make."""
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(main)


async def eventually(check: Callable[[], Any], *, within: float) -> Any:
    """Return what `check` returns once it is true; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not (found := check()):
        assert time.monotonic() < deadline, f"still {found!r} after {within:g} s"
        await asyncio.sleep(0.01)
    return found


class LagMeter:
    """Keep the longest time for which the loop did not come round while it is entered."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> LagMeter:
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _measure(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - began - 0.001)


@contextmanager
def nothing_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """
    Fail at once what waits in this thread, which runs a loop.

    That is a socket that is not non-blocking, a sleep, and a wait for another thread.
    """
    watched = threading.get_ident()

    def guard(owner: Any, name: str, blocks: Callable[..., bool]) -> None:
        original = getattr(owner, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == watched and blocks(*args, **kwargs):
                raise AssertionError(f"{name}() blocks the loop")
            return original(*args, **kwargs)

        patch.setattr(owner, name, guarded)

    def is_blocking(sock: socket.socket, *args: Any, **kwargs: Any) -> bool:
        return sock.gettimeout() != 0 and socket.MSG_DONTWAIT not in [
            flag & socket.MSG_DONTWAIT for flag in args if isinstance(flag, int)
        ]

    with monkeypatch.context() as patch:
        for name in ("connect", "recv", "recv_into", "send", "sendall", "sendmsg"):
            guard(socket.socket, name, is_blocking)
        guard(time, "sleep", lambda *_: True)
        guard(Future, "result", lambda future, *_: not future.done())
        guard(threading.Thread, "join", lambda *_: True)
        guard(socket, "getaddrinfo", lambda *_, **__: True)
        yield
