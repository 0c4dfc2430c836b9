"""A Celery app whose worker answers as the light operator does (``--celery``)."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from sandai.op.models import VALID_PRIORITIES, TaskResult, queue_name, task_name

NAME, DELAY = os.environ["BENCH_NAME"], float(os.environ["BENCH_DELAY"])
app = Celery("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.accept_content = ["json", "msgpack"]
app.select_queues([queue_name(priority, NAME, "v1") for priority in VALID_PRIORITIES])


@app.task(name=task_name(NAME, "v1"))  # type: ignore[untyped-decorator]  # Celery has no types
def process_task(**kwargs: Any) -> dict[str, Any]:
    """Give back the options, after the delay."""
    time.sleep(DELAY)
    return TaskResult(results=kwargs["options"]).to_reply()
