"""Where the time of a task goes: py-spy's samples of ours and of the floor, by part of the code."""

from __future__ import annotations

import re
import signal
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from measuring import Place, measure
from report import LABELS, Rows
from suite import SCENARIOS

PROFILED = {"sequential": 4000, "threads": 20_000, "loop": 60_000, "batch": 60_000}
"""Scenarios, and requests enough for some thousand samples."""
CONTESTANTS = ("ours", "floor")
RATE = 500
"""Samples a second."""
_SHOWN = 12
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*?)(?::\d+)?\)$")
_OWN = re.compile(r"sandai/op/(?P<ours>\w+/\w+)\.py$|contestants/(?P<floor>floor_\w+)\.py$")
_REST = "the caller, threads, asyncio"


def part_of(stack: str) -> str:
    """
    Name the part of the code that a sample is of: the innermost that is not a library's.

    *stack* is a line of py-spy's raw format without its count.
    """
    for frame in filter(None, map(_FRAME.match, reversed(stack.split(";")))):
        if own := _OWN.search(frame["file"]):
            return own["ours"] or f"{own['floor']}, {frame['function'].rpartition('.')[2]}"
    return _REST


def shares(lines: Iterable[str]) -> list[tuple[str, float]]:
    """Return the parts with the largest shares of the samples, the largest first."""
    counted: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        counted[part_of(stack)] += int(count)
    total = counted.total()
    return [(part, count / total) for part, count in counted.most_common(_SHOWN)]


@contextmanager
def sampled(process_id: int, into: Path) -> Iterator[None]:
    """Sample a process; raises `RuntimeError` where one may not look into another."""
    py_spy = Path(sysconfig.get_path("scripts"), "py-spy")
    command = [str(py_spy), "record", "--pid", str(process_id), "--rate", str(RATE)]
    # Only who holds the interpreter: whether a thread that does not is at work, cannot
    # be told everywhere.
    command += ["--gil", "--full-filenames", "--format", "raw", "--output", str(into)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as spy:
        assert spy.stdout is not None
        said = spy.stdout.readline()
        if "Sampling" not in said:
            raise RuntimeError(f"no profile: {said}{spy.stdout.read()}")
        try:
            yield
        finally:
            spy.send_signal(signal.SIGINT)
            spy.communicate()


def profiles(place: Place) -> Iterator[tuple[str, Rows]]:
    """Yield a heading and a table for each scenario."""
    for name, requests in PROFILED.items():
        for contestant in CONTESTANTS:
            with tempfile.TemporaryDirectory() as folder:
                raw = Path(folder, "samples")
                watched = partial(sampled, into=raw)
                figures = measure(SCENARIOS[name], contestant, requests, False, place, watched)
                found = shares(raw.read_text("utf-8").splitlines())
            rows = [["part", "share"], *([part, f"{share:.0%}"] for part, share in found)]
            yield f"{name}, {LABELS[contestant]}: {figures['cpu_us']:.0f} µs of CPU a task", rows
