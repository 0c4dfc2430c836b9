"""Faults of a Redis and of the network before it, one after the other, drawn from a seed."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

import redis

from local_redis import LocalRedis
from tcp_proxy import Cut, Entry, TcpProxy, Way

BYTES = 5_000
"""At most so many pass before a connection is cut."""


class Chaos:
    """
    Break something every second, in a thread, until the ``with`` block is left; then all is well.

    Each kind of fault comes once in a round, in an order of the round's own.
    """

    def __init__(self, seed: int, server: LocalRedis, broker: TcpProxy, backend: TcpProxy) -> None:
        self.struck: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._choice = random.Random(f"{seed} faults")
        self._server = server
        self._proxies = (broker, backend)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos")
        self._faults: list[Callable[[], None]] = [
            self.cut,
            self.cut_after,
            self.black_hole,
            self.delay,
            self.drop_replies,
            self.refuse,
            self.keep_silent,
            self.freeze,
            self.kill,
            self.kill_subscribers,
        ]

    @property
    def kinds(self) -> int:
        """How many kinds of faults there are."""
        return len(self._faults)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                for fault in self._choice.sample(self._faults, len(self._faults)):
                    if self._over.wait(self._choice.uniform(0.2, 0.8)):
                        break
                    fault()
                    self.struck[fault.__name__] += 1
                    for proxy in self._proxies:
                        proxy.heal()
            for proxy in self._proxies:
                proxy.cut()  # those that are silent, too: nobody would ever hear of them
        except BaseException as error:
            self.failure = error
            self._over.set()

    def last(self, seconds: float) -> None:
        """Wait for so long, or until something other than what is tested fails."""
        self._over.wait(seconds)

    def _hold(self, longest: float) -> None:
        self._over.wait(self._choice.uniform(0.1, longest))

    def _proxy(self) -> TcpProxy:
        return self._choice.choice(self._proxies)

    def cut(self) -> None:
        """End connections at once."""
        self._proxy().cut(self._choice.choice([Cut.RESET, Cut.FIN]))

    def cut_after(self) -> None:
        """End a connection in the middle of a request or of a reply."""
        count, way = self._choice.randrange(BYTES), self._choice.choice(list(Way))
        self._proxy().cut_after(count, way, self._choice.choice(list(Cut)))
        self._hold(0.7)

    def black_hole(self) -> None:
        """Swallow what comes on the open connections; much later they are reset."""
        proxy = self._proxy()
        proxy.black_hole(self._choice.choice(list(Way)))
        self._hold(2.0)
        proxy.cut()

    def delay(self) -> None:
        """Have everything take longer."""
        self._proxy().delay = self._choice.uniform(0.02, 0.3)
        self._hold(1.0)

    def drop_replies(self) -> None:
        """Let requests through, and no reply."""
        proxy = self._proxy()
        proxy.drop_replies = self._choice.choice(list(Cut))
        self._hold(0.7)
        proxy.heal()
        proxy.cut()

    def refuse(self) -> None:
        """Be away."""
        proxy = self._proxy()
        proxy.entry = Entry.REFUSED
        proxy.cut()
        self._hold(1.0)

    def keep_silent(self) -> None:
        """Accept and say nothing."""
        proxy = self._proxy()
        proxy.entry = Entry.SILENT
        proxy.cut(Cut.FIN)
        self._hold(1.0)
        proxy.heal()
        proxy.cut()

    def freeze(self) -> None:
        """Freeze the server, for less and for more than clients wait for a reply."""
        self._server.pause()
        self._hold(1.5)
        self._server.resume()

    def kill(self) -> None:
        """Kill the server and start it again, with what it acknowledged."""
        self._server.kill()
        self._hold(0.7)
        self._server.start()

    def kill_subscribers(self) -> None:
        """Have the server throw out who subscribes."""
        with (
            contextlib.closing(redis.Redis.from_url(self._server.url)) as redis_client,
            contextlib.suppress(redis.RedisError),
        ):
            redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
