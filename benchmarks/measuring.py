"""One contestant in one scenario, once: run its process, and look from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import psutil
from attrs import frozen

from contestants.job import Job
from server_view import PeakSampler, ServerView
from suite import Scenario

HERE = Path(__file__).parent
TIME_LIMIT = 300.0
"""Seconds after which a contestant is ended."""
STEADY = 3.0
"""Seconds that pending requests have to come to rest before they are watched."""

Figures = dict[str, float]
"""Measures by name. Seconds, but for the ``_us`` and ``_ms``; see `report.MEASURES`."""


@frozen
class Place:
    """Where it is measured: the server, and the contestants' Pythons."""

    broker_url: str
    backend_url: str
    pythons: Mapping[str, str]
    #: False where a Celery worker answers: its commands and connections are not told apart.
    is_counted: bool = True


@frozen
class Conversation:
    """The pipes to a contestant."""

    process: subprocess.Popen[str]

    def hear(self, event: str) -> dict[str, Any]:
        """Wait until it says so; return what else it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the contestant ended before its work was done")
        said: dict[str, Any] = json.loads(line)
        if said["event"] != event:
            raise RuntimeError(f"the contestant says {said['event']}, not {event}")
        return said

    def go_on(self) -> None:
        """Let it go on."""
        self.write("")

    def write(self, line: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def measure(
    scenario: Scenario,
    contestant: str,
    requests: int,
    quick: bool,
    place: Place,
    watched: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> Figures:
    """
    Run it and return its figures; raises `RuntimeError` with what it wrote if it fails.

    *watched* is entered with its process id while it works.
    """
    job = Job(
        shape=scenario.shape,
        requests=requests,
        broker_url=place.broker_url,
        backend_url=place.backend_url,
        concurrency=scenario.concurrency,
        loops=scenario.loops,
        broker_limit=scenario.limits.broker,
        backend_limit=scenario.limits.backend,
        poll_concurrency=scenario.limits.poll_concurrency,
        operator="nobody" if scenario.wait else scenario.operator.name,
    )
    with (
        ServerView(place.broker_url) as server,
        _process(place.pythons[contestant], contestant) as talk,
        PeakSampler(place.broker_url) as sampler,
    ):
        server.ask("FLUSHALL")
        talk.write(job.to_line())
        talk.hear("ready")
        figures: Figures = {"requests": requests}
        if scenario.wait:
            figures |= _watch_pending(server, talk, job, scenario.wait[quick])
        else:
            with watched(talk.process.pid):
                figures |= _watch_work(server, talk, job)
            if scenario.operator.delay:
                figures["ideal"] = scenario.ideal(requests)
        talk.go_on()
        talk.hear("closed")
        settled = server.settled(5.0 if contestant == "ours" else 0.3)
        talk.go_on()
        talk.process.wait(30)
        server.ask("FLUSHALL")
    figures |= {
        "broker_peak": sampler.peak.broker,
        "backend_peak": sampler.peak.backend,
        "unnamed": sampler.peak.unnamed,
        "settled": settled.broker + settled.backend,
    }
    if not place.is_counted:
        for name in ("broker_peak", "backend_peak", "unnamed", "settled", "commands"):
            figures.pop(name, None)
    return figures


def _watch_work(server: ServerView, talk: Conversation, job: Job) -> Figures:
    before = server.commands()
    talk.go_on()
    done = talk.hear("done")
    commands = server.commands() - before
    figures: Figures = {
        "wall": done["wall"],
        "rate": job.requests / done["wall"],
        "cpu_us": done["cpu"] / job.requests * 1e6,
        "commands": commands / job.requests,
    }
    return figures | {name: done[name] for name in ("p50_ms", "p99_ms") if name in done}


def _watch_pending(server: ServerView, talk: Conversation, job: Job, seconds: float) -> Figures:
    process = psutil.Process(talk.process.pid)
    before = process.memory_info().rss
    talk.go_on()
    talk.hear("pending")
    deadline = time.monotonic() + TIME_LIMIT
    while server.ask("LLEN", job.queue) < job.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(STEADY)
    after = process.memory_info().rss
    talk.go_on()
    talk.hear("idle")
    commands = server.commands()
    began = time.perf_counter()
    time.sleep(seconds)
    commands = server.commands() - commands
    elapsed = time.perf_counter() - began
    talk.go_on()
    done = talk.hear("done")
    return {
        "bytes_each": (after - before) / job.requests,
        "idle_cpu": done["cpu"] / done["wall"],
        "idle_commands": commands / elapsed,
    }


@contextmanager
def _process(python: str, contestant: str) -> Iterator[Conversation]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CELERY_", "SANDAI_"))
    }
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, "-m", f"contestants.{contestant}"],
            env=environment | {"PYTHONPATH": str(HERE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        watchdog = threading.Timer(TIME_LIMIT, process.kill)
        watchdog.start()
        try:
            yield Conversation(process)
        except BaseException:
            _show(errors)
            raise
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def _show(errors: IO[str]) -> None:
    errors.seek(0)
    print(errors.read()[-4000:], file=sys.stderr)
