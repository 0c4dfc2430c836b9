"""A task as a worker takes it from its queue: kombu's envelope, opened."""

import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
from attrs import define, field
from kombu.serialization import loads, registry

from sandai.op.models import TaskRequest


@define(eq=False)
class FakeTask:
    """
    A task that came to an operator, or is on its way in a queue.

    ``kwargs`` are as they were sent; :attr:`request` is what an operator makes of them.
    """

    task_id: str
    queue: str
    kwargs: dict[str, Any]
    root_id: str | None = None
    parent_id: str | None = None
    headers: Mapping[str, Any] = field(factory=dict, repr=False)
    _request: TaskRequest | None = field(default=None, init=False, repr=False)

    @property
    def priority(self) -> str:
        """The priority: the first word of the queue's name."""
        return self.queue.partition(".")[0]

    @property
    def request(self) -> TaskRequest:
        """The task's request; raises :class:`InvalidTaskError` for kwargs that make none."""
        if self._request is None:
            self._request = TaskRequest.from_kwargs(self.kwargs, task_id=self.task_id)
        return self._request


def decode(queue: str, envelope: bytes, accept: Sequence[str] = ("json", "msgpack")) -> FakeTask:
    """Return the task in an envelope; raises whatever is wrong with it."""
    message = json.loads(envelope)
    headers = message["headers"]
    body = b64decode(message["body"])
    kind = message["content-type"]
    if kind == "application/x-msgpack" and "msgpack" in accept:
        _, kwargs, _ = msgpack.unpackb(body)
    else:
        types = {registry.name_to_type[name] for name in accept}
        _, kwargs, _ = loads(body, kind, message["content-encoding"], accept=types)
    return FakeTask(
        headers["id"], queue, kwargs, headers.get("root_id"), headers.get("parent_id"), headers
    )
