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
        name: str = "bench",
        version: str = "v1",
        delay: float = 0.0,
        concurrency: int = 32,
        publish: bool = True,
        serializer: str = "json",
    ) -> None:
        self._settings = {
            "url": url,
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
    """What runs in the process: one thread takes tasks, another answers those that are due."""

    def __init__(
        self,
        url: str,
        name: str,
        version: str,
        delay: float,
        concurrency: int,
        publish: bool,
        serializer: str,
    ) -> None:
        self._url = url
        self._queues = [f"{priority}.{name}.{version}" for priority in PRIORITIES]
        self._delay = delay
        self._publish = publish
        self._encode: Callable[[Any], bytes] = (
            msgpack.packb if serializer == "msgpack" else lambda value: json.dumps(value).encode()
        )
        self._free = concurrency
        # Due time, a counter that keeps the order, task id, answer.
        self._running: list[tuple[float, int, str, bytes]] = []
        self._counter = itertools.count()
        self._changed = threading.Condition()

    def connect(self) -> redis.Redis:
        """Return a connection that waits as long as it takes, and doubles nothing."""
        return redis.Redis.from_url(
            self._url,
            socket_timeout=None,
            retry=None,
            protocol=2,
            single_connection_client=True,
            client_name="light-operator",
        )

    def take(self, ready: Callable[[], None]) -> None:
        """Take tasks as long as there is room for them; returns where it cannot even begin."""
        client = self.connect()
        client.ping()
        ready()
        while True:
            try:
                while True:
                    self._take_some(client)
            except redis.RedisError:
                time.sleep(0.02)  # nobody tells when a server is back, or a master again

    def _take_some(self, client: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            room = self._free
        popped = client.brpop(self._queues, timeout=0)
        messages = [popped[1]]
        if room > 1:
            messages += client.rpop(popped[0], min(room - 1, BATCH)) or []
        now = time.monotonic()
        taken = [self._task(json.loads(message), now) for message in messages]
        with self._changed:
            self._free -= len(taken)
            for task in taken:
                heapq.heappush(self._running, task)
            self._changed.notify_all()

    def _task(self, message: dict[str, Any], now: float) -> tuple[float, int, str, bytes]:
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
        return now + delay, next(self._counter), task_id, self._encode(document)

    def answer(self) -> None:
        """Answer what is due; never returns."""
        while True:
            due = self._due()
            while True:
                try:
                    self._write(due)
                    break
                except redis.RedisError:
                    time.sleep(0.02)
            with self._changed:
                self._free += len(due)
                self._changed.notify_all()

    def _due(self) -> list[tuple[float, int, str, bytes]]:
        with self._changed:
            while True:
                now = time.monotonic()
                due: list[tuple[float, int, str, bytes]] = []
                while self._running and self._running[0][0] <= now and len(due) < BATCH:
                    due.append(heapq.heappop(self._running))
                if due:
                    return due
                self._changed.wait(self._running[0][0] - now if self._running else None)

    def _write(self, due: list[tuple[float, int, str, bytes]]) -> None:
        client = self._answers = getattr(self, "_answers", None) or self.connect()
        with client.pipeline(transaction=False) as pipeline:
            for _, _, task_id, document in due:
                key = f"celery-task-meta-{task_id}"
                pipeline.set(key, document, ex=EXPIRY)
                if self._publish:
                    pipeline.publish(key, document)
            pipeline.execute()


def main() -> None:
    """Answer tasks until the parent ends, or ends this."""
    responder = _Responder(**json.loads(sys.stdin.readline()))

    def until_the_parent_ends() -> None:
        sys.stdin.read()
        os._exit(0)

    for target in (responder.answer, until_the_parent_ends):
        threading.Thread(target=target, daemon=True).start()
    responder.take(lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
