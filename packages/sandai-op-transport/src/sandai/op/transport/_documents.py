"""Result documents: the bytes that Celery stores for a task, and what they mean."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field
from kombu.serialization import loads, registry

from sandai.op.models import InvalidResultFormatError, OperatorError, TaskCancelledError, protocol

from ._compression import decompressed

#: States that end a wait; STARTED, RETRY and an operator's own do not.
READY_STATES = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
PENDING = "PENDING"

_decode_json = json.JSONDecoder().decode
_BACKSLASH = ord("\\")
_ESCAPED_LETTER = re.compile(rb"\\u00[567]")


@define(eq=False)
class ResultDocument:
    """
    One task's stored document.

    ``meta`` is Celery's (``status``, ``result``, ``traceback``, ``children``,
    …). A document that cannot be decoded has ``fault`` set and is ready: it
    ends the wait of its own task alone.
    """

    task_id: str
    state: str
    meta: dict[str, Any] = field(factory=dict, repr=False)
    fault: InvalidResultFormatError | None = None
    #: Stored bytes, where they were seen.
    size: int = 0
    #: How it came, for people: looked up, pushed, or found by a sweep.
    how: str = "looked up"

    @property
    def ready(self) -> bool:
        """Whether the document ends a wait."""
        return self.state in READY_STATES

    @property
    def failure(self) -> OperatorError | None:
        """Why there is no reply: undecodable, failed or revoked; else ``None``."""
        if self.fault is not None:
            return self.fault
        if self.state == "REVOKED":
            return TaskCancelledError(self.task_id)
        if self.state == "FAILURE":
            return protocol.failure_error(
                self.task_id, self.meta.get("result"), self.meta.get("traceback")
            )
        return None

    def reply(self) -> Any:
        """Return the operator's reply, or raise :attr:`failure`."""
        failure = self.failure
        if failure is not None:
            raise failure
        return self.meta.get("result")


def pending(task_id: str) -> ResultDocument:
    """Return the document of a task of which nothing is stored."""
    return ResultDocument(task_id, PENDING, {"status": PENDING, "result": None})


def from_meta(task_id: str, meta: object, source: object) -> ResultDocument:
    """Return the document for decoded *meta*; *source* is what it was decoded from."""
    if not (type(meta) is dict or isinstance(meta, Mapping)) or not isinstance(
        meta.get("status"), str
    ):
        return undecodable(task_id, source, "the stored document is not one of Celery's")
    plain = meta if type(meta) is dict else dict(meta)
    return ResultDocument(task_id, plain["status"], plain)


def undecodable(task_id: str, payload: object, reason: str) -> ResultDocument:
    """Return the document for what cannot be read; the error keeps the bytes."""
    fault = InvalidResultFormatError(task_id, payload, reason)
    return ResultDocument(task_id, "FAILURE", {"status": "FAILURE", "result": None}, fault)


class DocumentDecoder:
    """
    Decode documents with the result serializer, else another accepted one.

    Never raises, whatever the bytes: a document that no accepted serializer
    reads becomes an :func:`undecodable` one. No class is ever imported.
    """

    def __init__(self, serializer: str, accepted: Sequence[str]) -> None:
        others = sorted(set(accepted) - {serializer})
        self._serializers = [serializer, *others]
        self._types = {name: registry.name_to_type[name] for name in self._serializers}

    def decode(self, task_id: str, payload: bytes) -> ResultDocument:
        """Return the document in *payload*."""
        document = self._decode(task_id, payload)
        document.size = len(payload)
        return document

    def _decode(self, task_id: str, payload: bytes) -> ResultDocument:
        try:
            data = decompressed(payload)
        except Exception as error:
            reason = f"it cannot be decompressed ({protocol.describe_error(error)})"
            return undecodable(task_id, payload, reason)
        first_error = ""
        for name in self._serializers:
            try:
                document = from_meta(task_id, self._loads(name, data), payload)
            except Exception as error:
                first_error = first_error or protocol.describe_error(error)
                _let_go(error)
                continue
            if document.fault is None:
                return document
        tried = " or ".join(self._serializers)
        reason = f"it is no {tried} document"
        if first_error:
            reason += f" ({first_error})"
        return undecodable(task_id, payload, reason)

    def _loads(self, name: str, data: bytes) -> Any:
        if name == "json" and not _has_markers(data):
            # Without kombu's markers its decoder does just this, but slower.
            return _decode_json(data.decode())
        content_type = self._types[name]
        encoding = "binary" if name in ("msgpack", "pickle") else "utf-8"
        return loads(data, content_type, encoding, accept={content_type})


def _let_go(error: BaseException | None) -> None:
    """Free what an error's traceback holds, the bytes among it: kombu's errors are in cycles."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def _has_markers(data: bytes) -> bool:
    """Return whether kombu's ``__type__`` may be a key in a JSON text."""
    if b"__type__" in data:
        return True
    # Nobody writes ASCII's letters as \u005f, but one may, and kombu reads the marker in it.
    # Three questions, because each costs a fraction of the next.
    return _BACKSLASH in data and b"\\u00" in data and _ESCAPED_LETTER.search(data) is not None
