"""
A light-weight operator: raw Redis, no Celery, thousands of tasks a second.

The tests and the benchmarks use it where the client is measured, not a worker.
"""

from __future__ import annotations

import base64
import contextlib
import heapq
import itertools
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgpack
import redis

PRIORITIES = ("high", "normal", "low", "very_low")
EXPIRY = 86_400
"""Seconds that a result is kept, as Celery's backend has it."""
STOP_TIMEOUT = 5.0
BATCH = 256
"""Messages that are taken, and answers that are written, in one command at most."""


class LightOperator:
    """
    Answer an operator's tasks from a process of its own, until the ``with`` block is left.

    Tasks are taken from `url`, answers go to `backend_url`, which is the same unless it is said.
    Each task takes `delay` seconds, or the seconds in its option ``delay``, and `concurrency` of
    them run at once. The answer echoes the task: its artifacts are the input artifacts and its
    results the options. It is SET, and PUBLISHed where `publish` says so, as `serializer` ("json"
    or "msgpack"). A Redis that goes away is waited for; what was being worked on is answered
    once it is back. Entering raises `RuntimeError` where Redis cannot be reached.
    """

    def __init__(
        self,
        url: str,
        *,
        backend_url: str | None = None,
        name: str = "bench",
        version: str = "v1",
        delay: float = 0.0,
        concurrency: int = 32,
        publish: bool = True,
        serializer: str = "json",
    ) -> None:
        self._settings = {
            "url": url,
            "backend_url": backend_url or url,
            "name": name,
            "version": version,
            "delay": delay,
            "concurrency": concurrency,
            "publish": publish,
            "serializer": serializer,
        }
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        # The settings hold a password, perhaps: not on the command line.
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._settings) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "ready\n":
            self.close()
            raise RuntimeError("the light operator did not start; see its traceback")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id, for whoever freezes it or counts what it costs."""
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """End the process; leaving the ``with`` statement does it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()  # it has nothing to lose
        process.wait(STOP_TIMEOUT)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class _Responder:
    """What runs in the process: one thread that takes tasks and answers those that are due."""

    def __init__(
        self,
        url: str,
        backend_url: str,
        name: str,
        version: str,
        delay: float,
        concurrency: int,
        publish: bool,
        serializer: str,
    ) -> None:
        self._queues = [f"{priority}.{name}.{version}" for priority in PRIORITIES]
        self._delay = delay
        self._concurrency = concurrency
        self._publish = publish
        self._encode: Callable[[Any], bytes] = (
            msgpack.packb if serializer == "msgpack" else lambda value: json.dumps(value).encode()
        )
        self._tasks = self._connection(url)
        self._answers = self._connection(backend_url)
        # How many replies are awaited there: of a BRPOP and perhaps of an RPOP.
        self._asked = 0
        self._busiest = self._queues[0]
        # Due time, a counter that keeps the order, the commands that answer.
        self._running: list[tuple[float, int, bytes]] = []
        self._counter = itertools.count()

    def _connection(self, url: str) -> Any:
        """Make a connection that waits as long as it takes, and doubles nothing."""
        pool = redis.ConnectionPool.from_url(
            url,
            socket_timeout=None,
            retry=None,
            protocol=2,
            client_name="light-operator",
        )
        return pool.make_connection()

    def run(self, ready: Callable[[], None]) -> None:
        """Take and answer tasks; returns only where it cannot even begin."""
        for connection in (self._tasks, self._answers):
            connection.connect()
        ready()
        while True:
            try:
                self._ask()
                messages = self._take()
            except redis.RedisError:
                self._tasks.disconnect()
                self._asked = 0
                time.sleep(0.02)  # nobody tells when a server is back, or a master again
                messages = []
            now = time.monotonic()
            for message in messages:
                self._start(json.loads(message), now)
            self._answer()

    def _ask(self) -> None:
        """Ask for a task, and for more from the queue that had some, in one write."""
        room = self._concurrency - len(self._running)
        if self._asked or not room:
            return
        commands: list[tuple[str | int, ...]] = [("BRPOP", *self._queues, 0)]
        if room > 1:
            commands.append(("RPOP", self._busiest, min(room - 1, BATCH)))
        self._tasks.send_packed_command(self._tasks.pack_commands(commands))
        self._asked = len(commands)

    def _take(self) -> list[bytes]:
        """Wait for what was asked for, until the next answer is due; return the messages."""
        wait = max(0.0, self._running[0][0] - time.monotonic()) if self._running else None
        if not self._asked:
            time.sleep(wait or 0)
            return []
        # By select(), which is exact to the microsecond; poll() would be to the millisecond.
        if not select.select([self._tasks._sock], [], [], wait)[0]:
            return []
        queue, message = self._tasks.read_response()
        messages = [message]
        if self._asked == 2:
            messages += self._tasks.read_response() or []
        self._asked = 0
        self._busiest = queue.decode()
        return messages

    def _start(self, message: dict[str, Any], now: float) -> None:
        body = base64.b64decode(message["body"])
        is_json = message["content-type"] == "application/json"
        _, kwargs, _ = json.loads(body) if is_json else msgpack.unpackb(body)
        task_id = message["headers"]["id"]
        if kwargs.get("task_type") == "desc":
            reply = {
                "status": "success",
                "doc": "light",
                "options_schema": {},
                "results_schema": {},
            }
        else:
            reply = {
                "status": "success",
                "artifacts": kwargs["artifacts"],
                "results": kwargs["options"],
            }
        document = {
            "status": "SUCCESS",
            "result": reply,
            "traceback": None,
            "children": [],
            "date_done": None,
            "task_id": task_id,
        }
        delay = kwargs.get("options", {}).get("delay", self._delay)
        commands = self._commands(b"celery-task-meta-" + task_id.encode(), self._encode(document))
        heapq.heappush(self._running, (now + delay, next(self._counter), commands))

    def _commands(self, key: bytes, document: bytes) -> bytes:
        """Pack SET and PUBLISH by hand, so as to cost less than the clients that are served."""
        both = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(document), document)
        packed = b"*5\r\n$3\r\nSET\r\n%b$2\r\nEX\r\n$%d\r\n%d\r\n" % (
            both,
            len(str(EXPIRY)),
            EXPIRY,
        )
        return packed + b"*3\r\n$7\r\nPUBLISH\r\n" + both if self._publish else packed

    def _answer(self) -> None:
        """Answer what is due, as often as it takes until Redis has it."""
        now = time.monotonic()
        due: list[bytes] = []
        while self._running and self._running[0][0] <= now and len(due) < BATCH:
            due.append(heapq.heappop(self._running)[2])
        while due:
            try:
                self._answers.send_packed_command([b"".join(due)])
                # The next question goes along: its reply is there when these have been read.
                with contextlib.suppress(redis.RedisError):
                    self._ask()
                for _ in range(len(due) * (2 if self._publish else 1)):
                    self._answers.read_response()
                return
            except redis.RedisError:
                self._answers.disconnect()
                time.sleep(0.02)


def main() -> None:
    """Answer tasks until the parent ends, or ends this."""
    responder = _Responder(**json.loads(sys.stdin.readline()))

    def until_the_parent_ends() -> None:
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=until_the_parent_ends, daemon=True).start()
    responder.run(lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
