"""
Stamped messages: Celery's own message, built once, stamped for each task.

``app.amqp.as_task_v2`` (Celery message protocol 2) builds the headers of a task
name once per process; a submission stamps its ids and its body into them.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, setters
from celery import Celery, signals
from celery._state import _task_stack, get_current_worker_task

from ._serializers import encode_body

if TYPE_CHECKING:
    from ._operations import Sending

_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_SHOWN_OPTIONS = 200


@define(on_setattr=setters.frozen)  # which builds faster than a frozen one
class TaskMessage:
    """
    One task, ready for any broker.

    ``body`` is encoded; ``raw_body`` is what it encodes, for Celery's publish
    signals. ``root_id`` and ``parent_id`` are those of the surrounding task.
    """

    task_id: str
    task_name: str
    queue: str
    reply_to: str
    root_id: str
    parent_id: str | None
    kwargsrepr: str
    content_type: str
    content_encoding: str
    body: bytes
    raw_body: tuple[Any, ...]
    #: Counts from 1 where the task may be submitted again if its fate is unknown, else 0.
    attempt: int = 0
    #: Told what becomes of it, where anybody observes.
    sending: "Sending | None" = field(default=None, eq=False, repr=False)


class MessageFactory:
    """Make the messages of one broker, in its serializer."""

    def __init__(self, app: Celery, serializer: str) -> None:
        self._app = app
        self._serializer = serializer
        self._headers: dict[str, dict[str, Any]] = {}

    def make(
        self,
        task_name: str,
        queue: str,
        kwargs: Mapping[str, Any],
        *,
        reply_to: str,
        attempt: int = 0,
        task_id: str | None = None,
    ) -> TaskMessage:
        """
        Encode one task under *task_id*, or under a new id.

        Raises :class:`InvalidTaskError` with the path of what cannot be encoded.
        """
        task_id = task_id or new_id()
        root_id, parent_id = task_id, None
        if _task_stack.top is not None and (parent := get_current_worker_task()) is not None:
            root_id = parent.request.root_id or parent.request.id
            parent_id = parent.request.id
        raw_body = ((), kwargs, _EMBED)
        content_type, content_encoding, body = encode_body(kwargs, raw_body, self._serializer)
        return TaskMessage(
            task_id,
            task_name,
            queue,
            reply_to,
            root_id,
            parent_id,
            describe_kwargs(kwargs),
            content_type,
            content_encoding,
            body if isinstance(body, bytes) else body.encode(),
            raw_body,
            attempt,
        )

    def headers(self, message: TaskMessage) -> dict[str, Any]:
        """Return a message's headers, a fresh dict."""
        template = self._headers.get(message.task_name)
        if template is None:
            # ignore_result stays None, as send_task has it: False would
            # override the operator's own setting.
            template = self._app.amqp.as_task_v2(
                "", message.task_name, (), {}, argsrepr="()", kwargsrepr="", ignore_result=None
            ).headers
            self._headers[message.task_name] = template
        return template | {
            "id": message.task_id,
            "root_id": message.root_id,
            "parent_id": message.parent_id,
            "kwargsrepr": message.kwargsrepr,
            "timelimit": list(template["timelimit"]),
            "stamps": {},
        }

    @staticmethod
    def properties(message: TaskMessage) -> dict[str, Any]:
        """Return a message's properties, a fresh dict."""
        return {"correlation_id": message.task_id, "reply_to": message.reply_to}

    def before_publish(
        self, message: TaskMessage, headers: dict[str, Any], properties: dict[str, Any]
    ) -> TaskMessage:
        """
        Send Celery's ``before_task_publish``; receivers may change what goes out.

        Returns the message with its body encoded again.
        """
        signals.before_task_publish.send(
            sender=message.task_name,
            body=message.raw_body,
            exchange="",
            routing_key=message.queue,
            declare=[],
            headers=headers,
            properties=properties,
            retry_policy={},
        )
        *_, body = encode_body(message.raw_body[1], message.raw_body, self._serializer)
        return evolve(message, body=body if isinstance(body, bytes) else body.encode())

    def after_publish(self, message: TaskMessage) -> None:
        """Send Celery's ``after_task_publish`` when someone listens."""
        if signals.after_task_publish.receivers:
            signals.after_task_publish.send(
                sender=message.task_name,
                body=message.raw_body,
                headers=self.headers(message),
                exchange="",
                routing_key=message.queue,
            )


#: Random bytes for ids to come; taking one out is atomic. A forked child draws its own.
_randomness: list[bytes] = []
_IDS_DRAWN = 256

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_randomness.clear)


def new_id() -> str:
    """Return a random UUID (RFC 9562, version 4) as text: what ``str(uuid.uuid4())`` does."""
    # Without its object, and with randomness drawn for many at a time: together these cost
    # more than all the rest of a message.
    try:
        digits = _randomness.pop().hex()
    except IndexError:
        block = os.urandom(16 * _IDS_DRAWN)
        _randomness.extend(block[start : start + 16] for start in range(16, len(block), 16))
        digits = block[:16].hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def someone_listens_before_publish() -> bool:
    """Return whether ``before_task_publish`` has a receiver."""
    return bool(signals.before_task_publish.receivers)


def describe_kwargs(kwargs: Mapping[str, Any]) -> str:
    """
    Return the argument representation for the headers.

    It says how many artifacts and which options, never their values: Flower,
    events and logs show it.
    """
    if "task_type" in kwargs:
        return f"{{'task_type': {kwargs['task_type']!r}}}"
    options = ", ".join(sorted(kwargs.get("options", ())))
    return f"<{len(kwargs.get('artifacts', ()))} artifacts; options: {options[:_SHOWN_OPTIONS]}>"
