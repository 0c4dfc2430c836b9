"""Freezing a process, all its threads, before anything else happens."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

LONGEST = 5.0
"""Seconds that the threads of a busy machine may take to stop."""


def freeze(process_id: int) -> None:
    """
    Stop a process, and wait until none of its threads runs.

    A server with many threads goes on for a moment after the signal was sent. Where there is no
    ``/proc`` that cannot be seen.
    """
    os.kill(process_id, signal.SIGSTOP)
    deadline = time.monotonic() + LONGEST
    while not _is_frozen(process_id) and time.monotonic() < deadline:
        time.sleep(0.002)


def _is_frozen(process_id: int) -> bool:
    states = []
    for stat in Path(f"/proc/{process_id}/task").glob("*/stat"):
        with suppress(OSError):  # a thread that has ended meanwhile
            states.append(stat.read_text().rpartition(") ")[2][:1])
    return set(states) <= {"T"}
