"""
``video-clipper`` v1: an operator is a Celery worker that speaks ``sandai.op.models``.

It answers every task, good or bad, with a reply. Copy this and put your own work for :func:`clip`.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from celery import Celery, Task

from sandai.op.models import (
    VALID_PRIORITIES,
    Artifact,
    InvalidTaskError,
    OperatorDescription,
    TaskCancelledError,
    TaskRequest,
    TaskResult,
    error_reply,
    queue_name,
    task_name,
)

from .video import cut, local_file

NAME, VERSION = "video-clipper", "v1"
BROKER = os.environ.get("SANDAI_OPERATOR_CELERY_BROKER_URL") or "redis://localhost:6379/0"
BACKEND = os.environ.get("SANDAI_OPERATOR_CELERY_RESULT_BACKEND") or BROKER
WORK_DIR = os.environ.get("VIDEO_CLIPPER_WORK_DIR") or f"{tempfile.gettempdir()}/{NAME}"
CANCELLED = f"{NAME}:cancelled"  # SADD a cancel key to this Redis set: its tasks are skipped
LONGEST = 86_400  # seconds of video
TIMEOUT = 3_600  # seconds of work, where no deadline is nearer

SECONDS = {"type": "number", "minimum": 0, "maximum": LONGEST}
DESCRIPTION = OperatorDescription(
    doc="Clip a video: takes its file:// URI in slot 'video', gives an MP4 file in slot 'clip'.",
    options_schema={
        "type": "object",
        "properties": {
            "clip_duration": SECONDS | {"exclusiveMinimum": 0, "description": "seconds to keep"},
            "start": SECONDS | {"default": 0, "description": "seconds to skip"},
        },
        "required": ["clip_duration"],
        "additionalProperties": False,
    },
    results_schema={
        "type": "object",
        "properties": {"duration": {"type": "number"}, "frames": {"type": "integer"}},
        "required": ["duration", "frames"],
    },
)

app = Celery(NAME, broker=BROKER, backend=BACKEND)
app.conf.update(
    accept_content=["json", "msgpack"],  # clients send msgpack, and read json, Celery's own default
    worker_prefetch_multiplier=1,  # take what there is a thread for; leave the rest to others
    broker_connection_retry_on_startup=True,
    broker_transport_options={"queue_order_strategy": "priority"},  # first high, then normal, …
)
app.select_queues([queue_name(priority, NAME, VERSION) for priority in VALID_PRIORITIES])


@app.task(name=task_name(NAME, VERSION), bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def process_task(self: Task, **kwargs: Any) -> dict[str, Any]:
    """Answer one task; what goes wrong is an answer too."""
    try:
        request = TaskRequest.from_kwargs(kwargs, task_id=self.request.id)
        if request.is_description:
            return DESCRIPTION.to_reply()
        request.raise_if_expired()
        if request.cancel_key and app.backend.client.sismember(CANCELLED, request.cancel_key):
            raise TaskCancelledError(request.task_id, request.cancel_key)
        if request.is_probe:
            return TaskResult().to_reply()
        return clip(request).to_reply()
    except Exception as error:
        logging.getLogger(__name__).warning("task %s", self.request.id, exc_info=True)
        return error_reply(error)


def clip(request: TaskRequest) -> TaskResult:
    """Write the clip that a request asks for; raise what is wrong with the request."""
    if unknown := request.options.keys() - {"clip_duration", "start"}:
        raise InvalidTaskError("options", f"unknown: {', '.join(sorted(unknown))}")
    start, duration = seconds(request, "start", 0), seconds(request, "clip_duration")
    if duration == 0:
        raise InvalidTaskError("options.clip_duration", "more than 0 was expected")
    if (slots := [artifact.slot for artifact in request.artifacts]) != ["video"]:
        raise InvalidTaskError("artifacts", f"one in slot 'video' was expected, not {slots!r:.80}")
    video = local_file(request.artifacts[0].uri)
    folder = Path(WORK_DIR, "persistent" if request.persistent_output else "").resolve()
    timeout = min(TIMEOUT, request.remaining())
    try:
        path, frames, measured = cut(video, folder, start=start, duration=duration, timeout=timeout)
    except TimeoutError:
        request.raise_if_expired()  # names the deadline, where it was that which cut the time
        raise
    return TaskResult([Artifact(path.as_uri(), "clip")], {"duration": measured, "frames": frames})


def seconds(request: TaskRequest, name: str, default: float | None = None) -> float:
    """Return an option that is a number of seconds."""
    value = request.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
        expected = f"seconds from 0 to {LONGEST} were expected"
        raise InvalidTaskError(f"options.{name}", f"{expected}, not {value!r:.40}")
    return value
