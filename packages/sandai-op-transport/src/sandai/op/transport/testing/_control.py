"""Celery's ``app.control`` where workers and clients are in one process."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from celery.app.control import Control

from sandai.op.models import task_name

from ._operator import FakeOperator
from ._server import dial
from ._world import world


class MemoryControl(Control):  # type: ignore[misc]  # Celery is untyped
    """Tell the fake operators of a world directly what Celery would broadcast."""

    def broadcast(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        destination: str | Iterable[str] | None = None,
        connection: object = None,
        reply: bool = False,
        timeout: float | None = 1.0,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        **given: Any,
    ) -> list[dict[str, Any]] | None:
        """Return the operators' answers, each ``{hostname: answer}``, if *reply* is wanted."""
        wanted = [destination] if isinstance(destination, str) else destination
        found = world(self.app.conf.broker_url)
        with self.app.reaching_in_process(lambda: dial(found.name, ":broker:")), found.lock:
            operators = [
                operator
                for operator in found.operators
                if wanted is None or operator.hostname in wanted
            ]
        answers = [
            {operator.hostname: _obey(operator, command, arguments or {})} for operator in operators
        ]
        if not reply:
            return None
        for answer in answers[:limit]:
            if callback is not None:
                callback(answer)
        return answers[:limit]


def _obey(operator: FakeOperator, command: str, arguments: dict[str, Any]) -> Any:
    if command == "revoke":
        given = arguments["task_id"]
        task_ids = [given] if isinstance(given, str) else list(given)
        operator.revoke(task_ids, terminate=bool(arguments.get("terminate")))
        return {"ok": f"tasks {', '.join(task_ids)} flagged as revoked"}
    name = task_name(operator.name, operator.version)
    answers: dict[str, Callable[[], Any]] = {
        "ping": lambda: {"ok": "pong"},
        "active": lambda: [
            {
                "id": task.task_id,
                "name": name,
                "args": [],
                "kwargs": task.kwargs,
                "hostname": operator.hostname,
            }
            for task in operator.running()
        ],
        "active_queues": lambda: [{"name": queue} for queue in operator.queue_names],
        "registered": lambda: [name],
        "reserved": list,
        "scheduled": list,
        "revoked": operator.revoked,
        "stats": lambda: {
            "pid": os.getpid(),
            "pool": {"max-concurrency": operator.concurrency},
            "total": {name: operator.received},
        },
    }
    answer = answers.get(command)
    return {"error": f"memory:// does not know {command!r}"} if answer is None else answer()
