"""
What a contestant is asked for, and how it and the suite talk: lines of JSON on its pipes.

The suite writes the job. The contestant says "ready" once it has warmed up, "done" with its
figures once the work is, and "closed" once its connections should be; with work that stays
pending it says "pending" too. After each it waits until the suite, which meanwhile counts, writes
a line back.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

TIMEOUT = 300
"""Seconds that a call may take; none comes near."""


@dataclass(frozen=True)
class Job:
    """
    One run of a scenario's shape.

    *concurrency* is how many threads call, or how many calls are in flight on each loop; *loops*
    run in a thread each. The three limits are those that a client of ours, or the older one, is
    made with.
    """

    shape: str
    requests: int
    broker_url: str
    backend_url: str
    concurrency: int = 1
    loops: int = 1
    broker_limit: int = 8
    backend_limit: int = 8
    poll_concurrency: int = 4
    operator: str = "bench"
    version: str = "v1"

    @property
    def queue(self) -> str:
        """The queue of priority "normal"."""
        return f"normal.{self.operator}.{self.version}"

    @property
    def task_name(self) -> str:
        """The name that Celery knows the task by."""
        return f"sandai_operator.{self.operator}.{self.version}.process_task"

    def to_line(self) -> str:
        """Return the line that `from_line` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Return the job that a line describes."""
        return cls(**json.loads(line))


def tell(event: str, **figures: Any) -> None:
    """Say what is the case, and wait until the suite has seen to it."""
    print(json.dumps({"event": event, **figures}), flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the suite is gone")


class Stopwatch:
    """Wall and CPU seconds of this process, from when it is made."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Return both as figures."""
        wall = time.perf_counter() - self._wall
        return {"wall": wall, "cpu": time.process_time() - self._cpu}


def serve(shapes: dict[str, Callable[[Job], None]]) -> None:
    """Do the job that comes first on the standard input."""
    job = Job.from_line(sys.stdin.readline())
    shapes[job.shape](job)
    tell("closed")
