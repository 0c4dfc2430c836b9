"""
The operator ``scripted`` v1: it answers by hand-written dicts and does what its options say.

It knows nothing of ``sandai.op.models``: what it answers is what an operator on the wire may
answer. Option ``do`` names one of the functions below.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from redis import Redis

NAME, VERSION = "scripted", "v1"
URL = os.environ.get("SCRIPTED_OPERATOR_URL", "redis://localhost:6379/0")
OPTIONS = json.loads(os.environ.get("SCRIPTED_OPERATOR_OPTIONS", "{}"))
"""Transport options of broker and backend."""
BROKER_URL = os.environ.get("SCRIPTED_OPERATOR_BROKER_URL", URL)
RESULT_BACKEND = os.environ.get("SCRIPTED_OPERATOR_RESULT_BACKEND", URL)
DESCRIPTIONS = "scripted:descriptions"
"""A Redis list: the JSON replies to the next description tasks; when it is empty, DESCRIPTION."""
DESCRIBED = "scripted:described"
"""A Redis counter: how many description tasks came."""
PROBES = "scripted:probes"
"""A Redis list: the JSON replies to the next probes; when it is empty, an echo."""
CANCELLED = "scripted:cancelled"
"""A Redis set: tasks with these cancel keys are not done."""
DESCRIPTION = {
    "status": "success",
    "doc": "Does as it is told.",
    "options_schema": {"type": "object"},
    "results_schema": {"type": "object", "properties": {}},
}

app = Celery("scripted", broker=BROKER_URL, backend=RESULT_BACKEND)
script: Any = Redis.from_url(URL)
app.conf.update(
    accept_content=["json", "msgpack"],
    result_serializer="json",
    task_track_started=True,
    worker_send_task_events=False,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options=OPTIONS,
    result_backend_transport_options=OPTIONS,
)


class OddError(Exception):
    """An exception that cannot be built from its message, as many cannot."""

    def __init__(self, code: int, *, colour: str) -> None:
        super().__init__()
        self.code = code
        self.colour = colour


@app.task(name=f"sandai_operator.{NAME}.{VERSION}.process_task", bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def process_task(self: Task, **kwargs: Any) -> Any:
    """Do what the options say."""
    return answer(self, kwargs, script)


def answer(task: Task, kwargs: dict[str, Any], script: Any) -> Any:
    """Do what the options say, and before them the script in Redis."""
    if kwargs.get("task_type") == "desc":
        script.incr(DESCRIBED)
        time.sleep(0.2)  # so that callers meet while one asks
        scripted = script.lpop(DESCRIPTIONS)
        return json.loads(scripted) if scripted else DESCRIPTION
    options = kwargs.get("options") or {}
    if options == {"test": True} and (scripted := script.lpop(PROBES)):
        return json.loads(scripted)
    now = time.time()
    if kwargs.get("deadline", now) < now:
        details = {"deadline": kwargs["deadline"], "current_time": now}
        return failed("TaskDeadlineExceededError", "too late", details)
    if (key := kwargs.get("cancel_key")) and script.sismember(CANCELLED, key):
        return failed("TaskCancelledError", "cancelled", {"cancel_key": key})
    return BEHAVIOURS[options.get("do", "echo")](task, kwargs)


def failed(kind: Any, message: Any, details: Any) -> dict[str, Any]:
    """Return an error envelope."""
    error = {"error_type": kind, "error_message": message, "error_details": details}
    return {"status": "error", "error": error}


def echo(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Answer with what came in, and where it came from."""
    seen = {
        "kwargs": kwargs,
        "queue": task.request.delivery_info["routing_key"],
        "task_id": task.request.id,
        "root_id": task.request.root_id,
        "parent_id": task.request.parent_id,
    }
    return {"status": "success", "artifacts": kwargs.get("artifacts", []), "results": seen}


def sleep(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take ``seconds``."""
    time.sleep(kwargs["options"]["seconds"])
    return echo(task, kwargs)


def reply(task: Task, kwargs: dict[str, Any]) -> Any:
    """Answer with the option ``reply``, whatever it is."""
    return kwargs["options"]["reply"]


def raise_(task: Task, kwargs: dict[str, Any]) -> Any:
    """Fail as a Celery task does."""
    raise ValueError("raised by the operator", 42)


def raise_odd(task: Task, kwargs: dict[str, Any]) -> Any:
    """Fail with an exception that Celery cannot rebuild."""
    raise OddError(7, colour="red")


def large(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Answer with ``size`` characters."""
    return {
        "status": "success",
        "artifacts": [],
        "results": {"text": "é" * kwargs["options"]["size"]},
    }


def state(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Report a state of the operator's own for ``seconds``, then answer."""
    task.update_state(state=kwargs["options"]["state"], meta={"progress": 0.5})
    time.sleep(kwargs["options"]["seconds"])
    return echo(task, kwargs)


def retry(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Answer at the second try."""
    if task.request.retries == 0:
        raise task.retry(countdown=0.3)
    return echo(task, kwargs)


def ignore(task: Task, kwargs: dict[str, Any]) -> Any:
    """Never answer."""
    raise Ignore


def unencodable(task: Task, kwargs: dict[str, Any]) -> Any:
    """Answer with what no serializer takes."""
    return {"status": "success", "results": {"object": object()}}


def nested(task: Task, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Call another operator (this one again) from inside the task, and wait for it."""
    from celery.result import ResultSet

    from sandai.op.client import create_client

    with create_client(
        NAME, VERSION, broker_url=BROKER_URL, result_backend=RESULT_BACKEND, timeout=20
    ) as client:
        handle = client.async_call([], {"n": 1})
        first = handle.get(timeout=20)["results"]
        _, second = client.sync([], {"n": 2}, timeout=20)
        results = ResultSet([client.async_call([], {"n": n}) for n in (3, 4)])
        joined = [r["results"] for r in results.join(timeout=20, disable_sync_subtasks=False)]
    seen = {
        "task_id": task.request.id,
        "root_id": task.request.root_id,
        "children": [
            {key: child[key] for key in ("task_id", "root_id", "parent_id")}
            for child in (first, second, *joined)
        ],
    }
    return {"status": "success", "results": seen}


BEHAVIOURS: dict[str, Callable[[Task, dict[str, Any]], Any]] = {
    "echo": echo,
    "sleep": sleep,
    "reply": reply,
    "raise": raise_,
    "raise_odd": raise_odd,
    "large": large,
    "state": state,
    "retry": retry,
    "ignore": ignore,
    "unencodable": unencodable,
    "nested": nested,
}
