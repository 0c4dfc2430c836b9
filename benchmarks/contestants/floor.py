"""The floor: raw redis-py, a script for each scenario, that does the same Redis work."""

from __future__ import annotations

from . import floor_asyncio, floor_threads
from .driving import call_in_threads, call_in_turn, call_on_loops
from .job import Job, serve


def _threads(job: Job) -> None:
    call_in_threads(job, lambda: floor_threads.many_callers(job), shared=True)


if __name__ == "__main__":
    serve(
        {
            "sequential": lambda job: call_in_turn(job, floor_threads.one_caller(job)),
            "threads": _threads,
            # Clients of one process share connections, so does this.
            "client_each": _threads,
            "loops": lambda job: call_on_loops(job, lambda: floor_asyncio.many_calls(job)),
            "batch": floor_threads.batch,
            "async_batch": floor_asyncio.batch,
            "pending_calls": floor_asyncio.pending_calls,
        }
    )
