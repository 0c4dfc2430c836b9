"""Whatever bytes are stored for a task, they become a document and import nothing."""

import json
import math
import pickle
import subprocess
from datetime import datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.compression import compress
from kombu.utils import json as kombu_json

from sandai.op.models import InvalidResultFormatError, TaskCancelledError, TaskExecutionError
from sandai.op.transport import (
    PENDING,
    READY_STATES,
    DocumentDecoder,
    ResultDocument,
    pending,
)

DECODER = DocumentDecoder("json", ["json", "msgpack"])
META = {"status": "SUCCESS", "result": {"status": "success", "results": {"a": 1}}, "children": []}


def decode(payload: bytes, decoder: DocumentDecoder = DECODER) -> ResultDocument:
    """Decode a payload, as of one task."""
    return decoder.decode("id", payload)


def assert_refused(document: ResultDocument, payload: bytes) -> None:
    """Check that a payload became a typed error that ends its own task's wait."""
    assert document.ready
    assert isinstance(document.failure, InvalidResultFormatError)
    assert document.failure.task_id == "id"
    assert document.failure.result == payload
    with pytest.raises(InvalidResultFormatError):
        document.reply()


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("stored", ["json", "msgpack"])
def test_either_serializer(serializer: str, stored: str) -> None:
    """A result in another accepted serializer than the configured one is read too."""
    payload = json.dumps(META).encode() if stored == "json" else msgpack.packb(META)
    document = decode(payload, DocumentDecoder(serializer, ["json", "msgpack"]))
    assert document.reply() == META["result"]
    assert (document.state, document.ready, document.size) == ("SUCCESS", True, len(payload))


@pytest.mark.parametrize("method", ["gzip", "zlib", "bzip2"])
def test_compressed(method: str) -> None:
    """What Celery 5.7 compresses is read."""
    body, content_type = compress(json.dumps(META).encode(), method)
    payload = b"\0celery-compressed\0" + content_type.encode() + b"\0" + body
    assert decode(payload).reply() == META["result"]


@pytest.mark.parametrize(
    "payload",
    [
        b"\x00celery-compressed\x00",
        b"\x00celery-compressed\x00application/x-gzip\x00not gzip",
        b"\x00celery-compressed\x00application/unheard-of\x00abc",
        b"\x00celery-compressed\x00\xff\xfe\x00abc",
    ],
)
def test_badly_compressed(payload: bytes) -> None:
    """What cannot be decompressed is a typed error."""
    assert_refused(decode(payload), payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        json.dumps(META).encode()[:-5],
        msgpack.packb(META)[:-5],
        b"[]",
        b"null",
        b"7",
        b'"SUCCESS"',
        b"{}",
        b'{"status": null}',
        b'{"status": 7}',
        b'{"status": ["SUCCESS"]}',
        b'{"result": 1}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b'{"status": {"__type__": "nothing-known", "__value__": 1}}',
        b'{"status": "SUCCESS", "result": {"__type__": "os.system", "__value__": "true"}}',
        b'{"status": "SUCCESS", "result": {"__type__": "datetime", "__value__": "never"}}',
    ],
)
def test_no_document_of_celerys(payload: bytes) -> None:
    """Truncated, of another shape, or with an unknown marker: a typed error."""
    assert_refused(decode(payload), payload)


class Bomb:
    """Its pickle runs a program when it is read."""

    def __reduce__(self) -> Any:
        return subprocess.check_call, (["false"],)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_refused(protocol: int) -> None:
    """A pickled result is never unpickled unless the caller listed pickle."""
    payload = pickle.dumps({"status": "SUCCESS", "result": Bomb()}, protocol)
    assert_refused(decode(payload), payload)


def test_pickles_when_listed() -> None:
    """Who lists pickle gets it."""
    decoder = DocumentDecoder("json", ["json", "pickle"])
    assert decode(pickle.dumps(META), decoder).reply() == META["result"]


def test_no_class_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that names a function of this machine is told in words."""
    monkeypatch.setattr("os.system", lambda command: pytest.fail(f"ran {command}"))
    failure = {"exc_type": "system", "exc_module": "os", "exc_message": ["touch /tmp/pwned"]}
    meta = {"status": "FAILURE", "result": failure, "traceback": "Traceback: line 1"}
    error = decode(json.dumps(meta).encode()).failure
    assert isinstance(error, TaskExecutionError)
    assert error.error_details["exception_type"] == "system"
    assert error.error_message == "touch /tmp/pwned"
    assert error.error_details["traceback"] == "Traceback: line 1"


@pytest.mark.parametrize(
    "result", [None, 7, "boom", [1], {"exc_type": 5, "exc_message": {"a": 1}}, {"exc_message": []}]
)
def test_failures_of_any_shape(result: object) -> None:
    """However a failure was stored, it is an execution error."""
    error = decode(json.dumps({"status": "FAILURE", "result": result}).encode()).failure
    assert isinstance(error, TaskExecutionError)


def test_revoked() -> None:
    """A revoked task was cancelled."""
    document = decode(b'{"status": "REVOKED", "result": null}')
    assert document.ready
    with pytest.raises(TaskCancelledError):
        document.reply()


@pytest.mark.parametrize(
    "state", ["PENDING", "STARTED", "RETRY", "RECEIVED", "PROGRESS", "success"]
)
def test_other_states_end_no_wait(state: str) -> None:
    """Only three states end a wait."""
    document = decode(json.dumps({"status": state, "result": 1}).encode())
    assert (document.state, document.ready) == (state, False)
    assert state not in READY_STATES


def test_pending() -> None:
    """Of a task without a document it is known that it is pending."""
    document = pending("id")
    assert (document.state, document.ready, document.failure) == (PENDING, False, None)


def test_nan() -> None:
    """NaN and infinities, which Python's JSON writes, are read."""
    reply = decode(b'{"status": "SUCCESS", "result": {"a": NaN, "b": -Infinity}}').reply()
    assert math.isnan(reply["a"])
    assert reply["b"] == -math.inf


def test_kombu_markers() -> None:
    """What kombu's JSON marks with its type comes back as that type."""
    moment = datetime(2026, 1, 2, 3, 4, 5)
    payload = kombu_json.dumps({"status": "SUCCESS", "result": {"at": moment}}).encode()
    assert b"__type__" in payload
    assert decode(payload).reply() == {"at": moment}


def test_repr_shows_no_result() -> None:
    """A document's repr, which may be logged, shows no reply."""
    assert "canary" not in repr(decode(b'{"status": "SUCCESS", "result": "canary"}'))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=200))
def test_any_bytes(payload: bytes) -> None:
    """No bytes make the decoder raise, with the marker of compression or without."""
    for data in (payload, b"\x00celery-compressed\x00" + payload):
        document = decode(data)
        assert document.size == len(data)
        assert document.failure is None or document.ready


@given(json_values, json_values)
def test_any_document(status: Any, result: Any) -> None:
    """No document of any shape makes the decoder raise."""
    document = decode(json.dumps({"status": status, "result": result}).encode())
    assert document.failure is None or document.ready
    assert (document.fault is None) == isinstance(status, str)


@given(json_values)
def test_round_trip(result: Any) -> None:
    """What kombu's JSON writes is read as kombu reads it."""
    text = kombu_json.dumps({"status": "SUCCESS", "result": result})
    document = decode(text.encode())
    assert repr(document.reply()) == repr(kombu_json.loads(text)["result"])
