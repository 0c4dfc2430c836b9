"""
An operator that loses no task and executes none twice, whatever happens to its Redis.

It tells which tasks it executed, so that a test can hold a client to account.
"""

from __future__ import annotations

import base64
import contextlib
import heapq
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

import msgpack
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PRIORITIES = ("high", "normal", "low", "very_low")
EXPIRY = 60
"""Seconds that a result is kept: a server that is restarted has not much to load."""
BATCH = 200
TAKEN, NUMBERS = "ledger-operator:taken", "ledger-operator:numbers"
_TAKE = """
local found = {}
for i = 3, #KEYS do
  while #found < 2 * tonumber(ARGV[1]) do
    local message = redis.call('RPOP', KEYS[i])
    if not message then break end
    local number = redis.call('INCR', KEYS[2])
    redis.call('HSET', KEYS[1], number, message)
    found[#found + 1] = tostring(number)
    found[#found + 1] = message
  end
end
return found
"""


class LedgerOperator:
    """
    Answer an operator's tasks from a process of its own, until the ``with`` block is left.

    A task is moved from its queue to a hash, in one step, and leaves it together with its
    answer: so neither a lost reply nor a restart of a server with an append-only file loses one.
    The answer echoes the options, after the seconds in the option ``delay``.
    """

    def __init__(self, url: str, *, name: str, version: str = "v1") -> None:
        self._settings = {"url": url, "name": name, "version": version}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def report(self) -> tuple[Counter[str], Counter[int]]:
        """Return how often each task was executed: by its id, and by the number it carried."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        return Counter(said["ids"]), Counter({int(n): times for n, times in said["numbers"]})


class _Responder:
    """What runs in the process."""

    def __init__(self, url: str, name: str, version: str) -> None:
        self._keys = [TAKEN, NUMBERS, *(f"{priority}.{name}.{version}" for priority in PRIORITIES)]
        # It waits for a frozen server as long as it takes: a command that was given up and is
        # executed later would take tasks of which nobody hears.
        self._redis: Any = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            client_name="ledger-operator",
        )
        self._ids: Counter[str] = Counter()
        self._numbers: Counter[int] = Counter()
        self._unanswered: dict[bytes, tuple[str, bytes]] = {}
        self._due: list[tuple[float, bytes]] = []
        self._asked = threading.Event()

    def run(self) -> None:
        """Take and answer tasks."""
        threading.Thread(target=self._listen, daemon=True).start()
        astray = True
        while True:
            taken: dict[bytes, bytes] = {}
            try:
                if astray:
                    taken = self._redis.hgetall(TAKEN)
                    astray = False
                found = self._redis.eval(_TAKE, len(self._keys), *self._keys, BATCH)
                taken.update(zip(found[::2], found[1::2], strict=True))
                self._begin(taken)
                answered = self._answer()
            except (redis.ConnectionError, redis.TimeoutError):
                astray = True  # what was taken by a command without a reply is in the hash
                self._begin(taken)
                answered = False
            if self._asked.is_set():
                self._asked.clear()
                said = {"ids": self._ids, "numbers": list(self._numbers.items())}
                print(json.dumps(said), flush=True)
            if not answered:
                time.sleep(0.005)

    def _begin(self, taken: dict[bytes, bytes]) -> None:
        for number, message in taken.items():
            if number in self._unanswered:
                continue
            envelope = json.loads(message)
            body = base64.b64decode(envelope["body"])
            is_json = envelope["content-type"] == "application/json"
            _, kwargs, _ = json.loads(body) if is_json else msgpack.unpackb(body)
            task_id, options = envelope["headers"]["id"], kwargs.get("options", {})
            self._ids[task_id] += 1
            if "n" in options:
                self._numbers[options["n"]] += 1
            reply: dict[str, Any] = {"status": "success"}
            if kwargs.get("task_type") == "desc":
                reply |= {"doc": "ledger", "options_schema": {}, "results_schema": {}}
            else:
                reply |= {"artifacts": kwargs["artifacts"], "results": options}
            document = {"status": "SUCCESS", "result": reply, "task_id": task_id}
            key = f"celery-task-meta-{task_id}"
            self._unanswered[number] = (key, json.dumps(document).encode())
            heapq.heappush(self._due, (time.monotonic() + options.get("delay", 0.0), number))

    def _answer(self) -> bool:
        now = time.monotonic()
        due: list[tuple[float, bytes]] = []
        while self._due and self._due[0][0] <= now and len(due) < BATCH:
            due.append(heapq.heappop(self._due))
        if not due:
            return False
        try:
            with self._redis.pipeline(transaction=True) as pipe:
                for _, number in due:
                    key, document = self._unanswered[number]
                    pipe.set(key, document, ex=EXPIRY)
                    pipe.publish(key, document)
                pipe.hdel(TAKEN, *(number for _, number in due))
                pipe.execute()
        except redis.RedisError:
            for each in due:
                heapq.heappush(self._due, each)
            raise
        for _, number in due:
            del self._unanswered[number]
        return True

    def _listen(self) -> None:
        while sys.stdin.readline():
            self._asked.set()
        os._exit(0)  # the parent has ended


if __name__ == "__main__":
    _Responder(**json.loads(sys.argv[1])).run()
