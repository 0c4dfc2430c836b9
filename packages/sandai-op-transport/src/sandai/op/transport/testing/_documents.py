"""What Celery's Redis backend stores of a task, field by field."""

import json
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.utils.serialization import ensure_serializable
from kombu.serialization import dumps

from ._messages import FakeTask

_READY = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


def document(
    task: FakeTask,
    state: str,
    result: object,
    *,
    serializer: str = "json",
    said: str | None = None,
) -> bytes:
    """Return a task's document; *said* is the traceback. Raises what the serializer raises."""
    meta: dict[str, Any] = {
        "status": state,
        "result": result,
        "traceback": said,
        "children": [],
        "date_done": datetime.now(UTC).isoformat() if state in _READY else None,
    }
    if task.parent_id:
        meta["parent_id"] = task.parent_id
    meta["task_id"] = task.task_id
    return _encode(meta, serializer)


def failure(task: FakeTask, error: BaseException, *, serializer: str = "json") -> bytes:
    """Return the document of a task that raised."""
    said = "".join(traceback.format_exception(error))
    told = _told(error, serializer)
    return document(task, "FAILURE", told, serializer=serializer, said=said)


def revoked(task: FakeTask, reason: str, *, serializer: str = "json") -> bytes:
    """Return the document of a task that was revoked, or terminated."""
    return document(
        task, "REVOKED", _told(TaskRevokedError(reason), serializer), serializer=serializer
    )


def _told(error: BaseException, serializer: str) -> Mapping[str, Any]:
    kind = type(error)
    return {
        "exc_type": kind.__qualname__,
        "exc_message": ensure_serializable(error.args, lambda value: _encode(value, serializer)),
        "exc_module": kind.__module__,
    }


def _encode(value: object, serializer: str) -> bytes:
    if serializer == "json":
        try:
            return json.dumps(value).encode()
        except TypeError:  # kombu knows dates, UUIDs, … as well
            pass
    *_, payload = dumps(value, serializer)
    return payload if isinstance(payload, bytes) else payload.encode()
