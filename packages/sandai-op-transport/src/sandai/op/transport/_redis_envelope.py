"""kombu's JSON envelope of a task on a Redis list, rendered from a template."""

import json
import re
from base64 import b64encode
from collections.abc import Callable
from uuid import uuid4

from celery import Celery
from kombu.utils import json as kombu_json

from sandai.op.models import InvalidTaskError

from ._message import MessageFactory, TaskMessage, someone_listens_before_publish

#: Redis refuses strings beyond 512 MB (``proto-max-bulk-len``).
MAX_BYTES = 512 * 1024 * 1024
_BODY, _ID, _ROOT, _PARENT, _REPR, _TAG, _REPLY_TO = (
    f"<{name}-{uuid4()}>" for name in ("body", "id", "root", "parent", "repr", "tag", "reply_to")
)
_PLACES = re.compile(
    "|".join(f'"{re.escape(p)}"' for p in (_BODY, _ID, _ROOT, _PARENT, _REPR, _TAG, _REPLY_TO))
)

Stamp = Callable[[TaskMessage], str]
_STAMPS: dict[str, Stamp] = {
    f'"{_BODY}"': lambda message: f'"{b64encode(message.body).decode()}"',
    f'"{_ID}"': lambda message: f'"{message.task_id}"',
    f'"{_ROOT}"': lambda message: json.dumps(message.root_id),
    f'"{_PARENT}"': lambda message: json.dumps(message.parent_id),
    f'"{_REPR}"': lambda message: json.dumps(message.kwargsrepr),
    f'"{_TAG}"': lambda message: f'"{uuid4()}"',
    f'"{_REPLY_TO}"': lambda message: json.dumps(message.reply_to),
}


class EnvelopeRenderer:
    """
    Render messages as kombu's Redis transport does, key by key.

    The text of an envelope is the same for every task of a queue but for six
    places; it is rendered once and cut there.
    """

    def __init__(self, messages: MessageFactory, app: Celery) -> None:
        self._messages = messages
        mode = app.conf.task_default_delivery_mode
        self._delivery_mode = {"transient": 1, "persistent": 2}.get(mode, mode)
        self._templates: dict[tuple[str, str, str], list[str | Stamp]] = {}

    def render(self, message: TaskMessage, *, signals: bool = True) -> bytes:
        """
        Return the bytes to push; without *signals* nobody is told that they will be.

        Raises :class:`InvalidTaskError` when they are more than Redis takes.
        """
        if signals and someone_listens_before_publish():
            text = self._render_with_signal(message)
        else:
            key = (message.task_name, message.queue, message.content_type)
            template = self._templates.get(key)
            if template is None:
                template = self._templates[key] = self._cut(message)
            text = "".join([part if isinstance(part, str) else part(message) for part in template])
        envelope = text.encode()
        if len(envelope) > MAX_BYTES:
            raise InvalidTaskError(
                "task", f"is {len(envelope)} bytes encoded; Redis takes at most {MAX_BYTES}"
            )
        return envelope

    def _cut(self, message: TaskMessage) -> list[str | Stamp]:
        headers = self._messages.headers(message) | {
            "id": _ID,
            "root_id": _ROOT,
            "parent_id": _PARENT,
            "kwargsrepr": _REPR,
        }
        properties: dict[str, object] = {"correlation_id": _ID, "reply_to": _REPLY_TO}
        text = json.dumps(self._envelope(message, _BODY, _TAG, headers, properties))
        parts: list[str | Stamp] = []
        end = 0
        for place in _PLACES.finditer(text):
            parts += [text[end : place.start()], _STAMPS[place[0]]]
            end = place.end()
        return [*parts, text[end:]]

    def _render_with_signal(self, message: TaskMessage) -> str:
        headers = self._messages.headers(message)
        properties = self._messages.properties(message)
        message = self._messages.before_publish(message, headers, properties)
        body = b64encode(message.body).decode()
        envelope = self._envelope(message, body, str(uuid4()), headers, properties)
        try:
            # kombu's own encoder: a receiver may have put a date into the headers.
            return str(kombu_json.dumps(envelope))
        except (TypeError, ValueError) as error:
            raise InvalidTaskError("headers", f"JSON cannot encode them: {error}") from error

    def _envelope(
        self,
        message: TaskMessage,
        body: str,
        tag: str,
        headers: dict[str, object],
        properties: dict[str, object],
    ) -> dict[str, object]:
        return {
            "body": body,
            "content-encoding": message.content_encoding,
            "content-type": message.content_type,
            "headers": headers,
            "properties": {
                **properties,
                "delivery_mode": self._delivery_mode,
                "delivery_info": {"exchange": "", "routing_key": message.queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": tag,
            },
        }
