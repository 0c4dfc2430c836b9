"""
The operator ``outer`` v1: each of its tasks calls the light operator, from a forked process.

It has a client that was made, and used, before its processes were forked.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals
from celery.result import ResultSet

from sandai.op.client import OperatorClient

NAME, VERSION = "outer", "v1"
URL = os.environ["PREFORK_OPERATOR_URL"]
WAIT = 20.0

app = Celery("outer", broker=URL, backend=URL)
app.conf.update(
    accept_content=["json", "msgpack"],
    result_serializer="json",
    worker_send_task_events=False,
    worker_prefetch_multiplier=1,
    worker_max_tasks_per_child=6,
    broker_connection_retry_on_startup=True,
)
inherited = OperatorClient("bench", "v1", URL, timeout=WAIT)
unread = inherited.async_call([], {"n": "unread"})


@signals.worker_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def use_before_the_fork(**_: Any) -> None:
    """Open connections, and leave a wait under way."""
    assert inherited.sync([], {"n": 0}) == ([], {"n": 0})
    inherited.async_call([], {"delay": 5.0}).then(lambda _: None)


@app.task(name=f"sandai_operator.{NAME}.{VERSION}.process_task")  # type: ignore[untyped-decorator]  # Celery has no types
def process_task(options: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Call the other operator, and say who did."""
    if options["client"] == "inherited":
        answers = call(inherited, options["n"])
        assert unread.get(timeout=WAIT)["results"] == {"n": "unread"}
    else:
        with OperatorClient("bench", "v1", URL, timeout=WAIT) as client:
            answers = call(client, options["n"])
    results = {"answers": answers, "pid": os.getpid(), "parent": os.getppid()}
    return {"status": "success", "artifacts": [], "results": results}


def call(client: OperatorClient, number: int) -> list[int]:
    """Call it in every way."""
    _, first = client.sync([], {"n": number})
    second = client.async_call([], {"n": number + 1}).get(timeout=WAIT)["results"]
    batch = client.batch_sync_detailed([([], {"n": number + 2}), ([], {"n": number + 3})])
    handles = ResultSet([client.async_call([], {"n": number + n}) for n in (4, 5)])
    joined = handles.join(timeout=WAIT, disable_sync_subtasks=False)
    tasks: list[tuple[list[Any], dict[str, int]]] = [([], {"n": number + n}) for n in (6, 7, 8)]
    streamed = [r.results for r in client.map(tasks, max_in_flight=2, ordered=True)]
    every = [first, second, *(r.results for r in batch), *(r["results"] for r in joined)]
    every += streamed
    return [answer["n"] for answer in every]
