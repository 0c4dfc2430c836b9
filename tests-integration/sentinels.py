"""A primary, its replica, and Sentinels that watch them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from local_redis import HOST, LocalRedis, free_port
from watching import eventually, open_redis

MASTER = "mymaster"
OPTIONS = {"master_name": MASTER}


class Sentinels:
    """
    Run two Redis and three Sentinels, until the ``with`` block is left.

    They notice within half a second that the primary is gone.
    """

    def __init__(self, folder: Path, *, count: int = 3, server: str | None = None) -> None:
        self._folder = folder
        self._server = server
        sync_at_once = ("--repl-diskless-sync-delay", "0")
        self.first = LocalRedis(*sync_at_once, server=server)
        self.second = LocalRedis(*sync_at_once, server=server)
        self.ports = [free_port() for _ in range(count)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The URL that names every Sentinel, the first of which is down."""
        return ";".join(f"sentinel://{HOST}:{port}" for port in (1, *self.ports))

    @property
    def primary(self) -> LocalRedis:
        """Who the primary is, as the first Sentinel has it."""
        with redis.Redis(HOST, self.ports[0]) as sentinel:
            _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return self.first if int(port) == self.first.port else self.second

    def fail_over(self) -> None:
        """Make the replica the primary; returns while that goes on."""
        with redis.Redis(HOST, self.ports[0]) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for server in (self.first, self.second):
                stack.enter_context(server)
            with open_redis(self.second.url) as replica:
                replica.replicaof(HOST, self.first.port)
                eventually(
                    lambda: replica.info("replication")["master_link_status"] == "up", within=10
                )
            stack.callback(self._end)
            for port in self.ports:
                self._launch(port)
            for port in self.ports:
                with redis.Redis(HOST, port) as sentinel:
                    eventually(partial(self._ready, sentinel), within=15)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _launch(self, port: int) -> None:
        configuration = self._folder / f"sentinel-{port}.conf"
        quorum = len(self.ports) // 2 + 1
        configuration.write_text(
            f"sentinel monitor {MASTER} {HOST} {self.first.port} {quorum}\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 3000\n"
        )
        binary = shutil.which(self._server or os.environ.get("REDIS_SERVER") or "redis-server")
        assert binary is not None
        command = [binary, str(configuration), "--sentinel", "--port", str(port), "--bind", HOST]
        # A session of its own, as the servers have: see LocalRedis.
        self._processes.append(
            subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def _ready(self, sentinel: Any) -> bool:
        try:
            # Not sentinel_master(), which redis-py 6.4 cannot parse.
            peers = sentinel.execute_command("SENTINEL", "SENTINELS", MASTER)
            replicas = sentinel.execute_command("SENTINEL", "REPLICAS", MASTER)
        except (redis.ConnectionError, redis.ResponseError):
            return False
        others = len(self.ports) - 1
        return (len(peers), len(replicas)) == (others, 1)

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(5)
