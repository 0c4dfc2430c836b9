"""kombu's JSON envelope of a task on a Redis list, rendered from a template."""

import json
import re
from base64 import b64encode
from uuid import uuid4

from celery import Celery
from kombu.utils import json as kombu_json

from sandai.op.models import InvalidTaskError, protocol

from ._message import MessageFactory, TaskMessage, new_id, someone_listens_before_publish

#: Redis refuses strings beyond 512 MB (``proto-max-bulk-len``).
MAX_BYTES = 512 * 1024 * 1024
#: What differs from task to task, and what stands in its place in a template.
_PLACES = {
    f"<{name}-{uuid4()}>": name
    for name in ("body", "id", "root_id", "parent_id", "repr", "tag", "reply_to")
}
_PLACE = re.compile("|".join(f'"{re.escape(place)}"' for place in _PLACES))
_PLACE_OF = {name: place for place, name in _PLACES.items()}
#: Quotes a string as ``json.dumps`` does, which calls it too.
_quoted = json.encoder.encode_basestring_ascii


class EnvelopeRenderer:
    """
    Render messages as kombu's Redis transport does, key by key.

    The text of an envelope is the same for every task of a queue but for a few
    places; it is rendered once, as a template with these places open.
    """

    def __init__(self, messages: MessageFactory, app: Celery) -> None:
        self._messages = messages
        mode = app.conf.task_default_delivery_mode
        self._delivery_mode = {"transient": 1, "persistent": 2}.get(mode, mode)
        self._templates: dict[tuple[str, str, str], str] = {}

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
            text = template % {
                "body": b64encode(message.body).decode("ascii"),
                "id": message.task_id,
                "root_id": _quoted(message.root_id),
                "parent_id": "null" if message.parent_id is None else _quoted(message.parent_id),
                "repr": _quoted(message.kwargsrepr),
                "tag": new_id(),
                "reply_to": _quoted(message.reply_to),
            }
        envelope = text.encode()
        if len(envelope) > MAX_BYTES:
            raise InvalidTaskError(
                "task", f"is {len(envelope)} bytes encoded; Redis takes at most {MAX_BYTES}"
            )
        return envelope

    def _cut(self, message: TaskMessage) -> str:
        """Return the text of an envelope as a template for ``%``."""
        place = _PLACE_OF
        headers = self._messages.headers(message) | {
            "id": place["id"],
            "root_id": place["root_id"],
            "parent_id": place["parent_id"],
            "kwargsrepr": place["repr"],
        }
        properties: dict[str, object] = {
            "correlation_id": place["id"],
            "reply_to": place["reply_to"],
        }
        envelope = self._envelope(message, place["body"], place["tag"], headers, properties)
        return _PLACE.sub(_stamp, json.dumps(envelope).replace("%", "%%"))

    def _render_with_signal(self, message: TaskMessage) -> str:
        headers = self._messages.headers(message)
        properties = self._messages.properties(message)
        message = self._messages.before_publish(message, headers, properties)
        body = b64encode(message.body).decode()
        envelope = self._envelope(message, body, new_id(), headers, properties)
        try:
            # kombu's own encoder: a receiver may have put a date into the headers.
            return str(kombu_json.dumps(envelope))
        except Exception as error:  # whatever a class of the receiver's own does
            reason = f"JSON cannot encode them: {protocol.describe_error(error)}"
            raise InvalidTaskError("headers", reason) from error

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


def _stamp(place: re.Match[str]) -> str:
    name = _PLACES[place[0][1:-1]]
    # These need no quoting: ids of our own and base64.
    return f'"%({name})s"' if name in ("body", "id", "tag") else f"%({name})s"
