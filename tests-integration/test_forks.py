"""Processes that fork, with a client in them: both sides work, and nothing is shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forking
from celery_worker import CeleryWorker
from conftest import CreateClient
from light_operator import LightOperator
from watching import eventually, open_redis

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

PROGRAMS = [
    forking.before_any_call,
    forking.after_close,
    forking.calls_in_flight,
    forking.callbacks_outstanding,
    forking.held_locks,
    forking.preloaded,
    forking.from_another_thread,
    forking.child_leaves_properly,
    forking.grandchildren,
    forking.many_forks,
    forking.many_forks_of_short_lives,
    forking.while_a_loop_runs,
    forking.many_forks_while_a_loop_runs,
    forking.killed_parent,
    forking.multiprocessing_pools,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_process_that_forks(program: forking.Program, database: str) -> None:
    """Parent and children work, each with connections of its own, and say nothing as they end."""
    # Python 3.12 warns of every fork beside threads; they are the point here.
    options = ["-W", "default", "-W", "ignore::DeprecationWarning"]
    command = [sys.executable, *options, str(Path(forking.__file__)), program.__name__, database]
    with LightOperator(database, delay=0.001, concurrency=256):
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_prefork_worker_that_calls(database: str, create_client: CreateClient) -> None:
    """An operator's forked processes call another by a client of the parent's, and by their own."""
    worker = CeleryWorker(
        "prefork_operator",
        "outer",
        "v1",
        environment={"PREFORK_OPERATOR_URL": database},
        concurrency=3,
        pool="prefork",
    )
    with LightOperator(database, delay=0.01), open_redis(database) as redis_client:
        with worker:
            client = create_client("outer", "v1", broker_url=database, timeout=30)
            kinds = ("inherited", "own")
            tasks: list[Any] = [([], {"client": kinds[n % 2], "n": n}) for n in range(40)]
            results = client.batch_sync_detailed(tasks)
            log = worker.log()
        assert [r.error for r in results] == [None] * 40, log
        for number, result in enumerate(results):
            assert result.results["answers"] == list(range(number, number + 9))
        # They are replaced after some tasks each.
        assert len({result.results["pid"] for result in results}) > 3
        assert len({result.results["parent"] for result in results}) == 1
        assert "Traceback" not in log
        assert "sandai" not in log.replace("sandai_operator.outer.v1.process_task", "")
        client.close()
        eventually(
            lambda: not [c for c in redis_client.client_list() if c["name"].startswith("sandai")],
            within=2,
        )
