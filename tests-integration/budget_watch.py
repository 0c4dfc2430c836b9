"""How many connections a process has to servers behind proxies, whatever is done to them."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any, Self

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tcp_proxy import TcpProxy
from watching import BACKEND, BROKER

OPEN = {psutil.CONN_SYN_SENT, psutil.CONN_ESTABLISHED}


class BudgetWatch:
    """
    Count connections while it is entered: those that the server lists, and those held here.

    The server may list connections that were given up long ago and of whose end it has not
    heard. So one that it lists counts if, afterwards, this process still holds the client's end
    of it: whatever is counted was there at one time. What is held here counts, too, when the
    server cannot be asked.
    """

    def __init__(self, url: str, proxies: dict[str, TcpProxy], limits: dict[str, int]) -> None:
        self.listed = Counter[str]()
        self.held = Counter[str]()
        self.over: list[str] = []
        self.samples = 0
        self.failure: BaseException | None = None
        self._url = url
        self._proxies = proxies
        self._limits = limits
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            retry = Retry(NoBackoff(), 0)
            with redis.Redis.from_url(self._url, socket_timeout=0.3, retry=retry) as redis_client:
                while not self._over.wait(0.03):
                    self._look(redis_client)
        except BaseException as error:
            self.failure = error

    def _look(self, redis_client: Any) -> None:
        try:
            clients = redis_client.client_list()
        except redis.RedisError:
            clients = []
        routes = {side: proxy.routes() for side, proxy in self._proxies.items()}
        ports = {proxy.port: side for side, proxy in self._proxies.items()}
        held: dict[str, set[int]] = {side: set() for side in self._proxies}
        for each in psutil.Process().net_connections("tcp4"):
            # What was shut down waits for its loop to close it: it is no connection any more.
            if each.status in OPEN and each.raddr.port in ports:
                held[ports[each.raddr.port]].add(each.laddr.port)
        for side, prefix in (("broker", BROKER), ("backend", BACKEND)):
            ours = [
                int(client["addr"].rpartition(":")[2])
                for client in clients
                if client["name"] == f"{prefix}{os.getpid()}"
            ]
            listed = sum(routes[side].get(port) in held[side] for port in ours)
            self.listed[side] = max(self.listed[side], listed)
            self.held[side] = max(self.held[side], len(held[side]))
            if max(listed, len(held[side])) > self._limits[side]:
                self.over.append(f"{side}: {listed} of {ours} listed, {sorted(held[side])} held")
        self.samples += bool(clients)
