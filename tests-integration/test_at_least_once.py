"""What the workers' side does not promise: a task may run more than once, and the caller copes."""

from __future__ import annotations

import time
from pathlib import Path

from celery_worker import CeleryWorker
from conftest import CreateClient
from watching import eventually, open_redis

VISIBILITY = 1
"""Seconds; Celery's default is an hour."""

OPERATOR = """
from celery import Celery

app = Celery("late", broker={url!r}, backend={url!r})
app.conf.update(
    accept_content=["json", "msgpack"],
    broker_transport_options={{"visibility_timeout": {seconds}}},
    result_expires=60,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
)

@app.task(name="sandai_operator.late.v1.process_task")
def process_task(**kwargs):
    run = app.backend.client.incr("runs")
    if run == 1:
        app.backend.client.blpop("go on", 40)
    app.backend.client.rpush("ended", run)
    return {{"status": "success", "results": {{"run": run}}}}
"""


def test_a_task_that_outlasts_the_visibility_timeout(
    database: str, create_client: CreateClient, tmp_path: Path
) -> None:
    """Celery runs it again elsewhere; the caller gets one answer, and nothing of it hangs."""
    (tmp_path / "late.py").write_text(OPERATOR.format(url=database, seconds=VISIBILITY))
    client = create_client("late", "v1", broker_url=database)

    def worker() -> CeleryWorker:
        return CeleryWorker("late", "late", "v1", environment={}, folders=[tmp_path], concurrency=1)

    with worker(), open_redis(database) as redis:
        handle = client.async_call([], {})
        eventually(lambda: redis.get("runs") == b"1", within=10)
        time.sleep(VISIBILITY)
        with worker():  # which looks for overdue messages as it starts, and then now and again
            assert handle.get(timeout=30)["results"] == {"run": 2}
            handle.forget()
            redis.rpush("go on", 1)
            eventually(lambda: redis.llen("ended") == 2, within=10)
            # The first run's answer came when nobody waited any more: it expires.
            eventually(lambda: redis.exists(f"celery-task-meta-{handle.id}"), within=10)
            assert 0 < redis.ttl(f"celery-task-meta-{handle.id}") <= 60
