"""Documents written to do harm: each is the typed error of its own task, or plain data."""

import gc
import importlib.abc
import json
import pickle
import sys
import zlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.serialization import dumps, loads

from sandai.op.models import (
    InvalidResultFormatError,
    OperatorError,
    TaskExecutionError,
    protocol,
)
from sandai.op.transport import DocumentDecoder, ResultDocument

DECODER = DocumentDecoder("json", ["json", "msgpack"])
MARKER = b"\x00celery-compressed\x00application/x-gzip\x00"
TASK_ID = "0f3e9a0c"


class Canary(importlib.abc.MetaPathFinder):
    """Notes every module that somebody tries to import for the first time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, fullname: str, *_: Any) -> None:
        self.asked.append(fullname)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_imported() -> Iterator[None]:
    """Fail the module if any document of it had anything imported."""
    for payload in (b"{}", MARKER + zlib.compress(b"{}"), b'{"__type__": 1, "__value__": 1}'):
        outcome(DECODER.decode(TASK_ID, payload))  # what is imported on first use is not meant
    canary = Canary()
    sys.meta_path.insert(0, canary)
    yield
    sys.meta_path.remove(canary)
    assert not set(canary.asked) & set(NAMED_MODULES)


#: None of them is loaded already, or else an import would not show.
NAMED_MODULES = ["antigravity", "this", "turtledemo", "idlelib.idle", "lib2to3", "nowhere_at_all"]


def outcome(document: ResultDocument) -> Any:
    """Return what a caller gets for a document: the result, or the error; nothing else."""
    if not document.ready:
        return None
    try:
        return protocol.decode_reply(document.task_id, document.reply())
    except OperatorError as error:
        return checked(error)


def checked(error: OperatorError) -> OperatorError:
    """Return an error that is of the task, and fit to be shown."""
    assert vars(error)["task_id"] == TASK_ID
    said = str(error)
    assert len(said) < 2100
    assert not set(said) & CONTROLS
    assert said.encode()
    return error


CONTROLS = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E]}

texts = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\x1b[2J", "a\nERROR forged", "\ud800", "\u202e", "__type__", "__value__", "status", "error"]
)
numbers = st.integers() | st.sampled_from([2**64, -(2**63) - 1, 10**400]) | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts, inner, max_size=3)
        | st.fixed_dictionaries({"__type__": texts | inner, "__value__": inner})
    ),
    max_leaves=10,
)
errors = st.fixed_dictionaries(
    {},
    optional={
        "error_type": json_values
        | st.sampled_from(["TaskDeadlineExceededError", "TaskCancelledError"]),
        "error_message": json_values,
        "error_details": json_values
        | st.fixed_dictionaries(
            {"deadline": json_values, "current_time": json_values, "cancel_key": json_values}
        ),
    },
)
replies = json_values | st.fixed_dictionaries(
    {"status": st.sampled_from(["success", "error"]) | json_values},
    optional={"artifacts": json_values, "results": json_values, "error": json_values | errors},
)
failures = json_values | st.fixed_dictionaries(
    {
        "exc_type": json_values | st.sampled_from(["system", "KeyboardInterrupt"]),
        "exc_module": json_values | st.sampled_from(["os", "builtins", *NAMED_MODULES]),
        "exc_message": json_values,
    }
)
metas = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["SUCCESS", "FAILURE", "REVOKED", "STARTED"]) | json_values,
        "result": replies | failures,
    },
    optional={"traceback": json_values, "children": json_values, "task_id": json_values},
)


@given(metas)
def test_any_json_document(meta: dict[str, Any]) -> None:
    """Whatever JSON a document is made of, it is a result or a typed error."""
    found = outcome(DECODER.decode(TASK_ID, json.dumps(meta).encode()))
    if isinstance(found, OperatorError):
        assert str(pickle.loads(pickle.dumps(found))) == str(found)


@given(metas)
def test_any_msgpack_document(meta: dict[str, Any]) -> None:
    """The same document in msgpack, as far as that can hold it."""
    try:
        payload = msgpack.packb(meta, unicode_errors="surrogatepass")
    except (OverflowError, ValueError):
        return
    outcome(DECODER.decode(TASK_ID, payload))


@given(metas, st.data())
def test_damaged(meta: dict[str, Any], data: st.DataObject) -> None:
    """A document cut short, or with a byte changed, compressed or not."""
    payload = json.dumps(meta).encode()
    if data.draw(st.booleans()):
        payload = MARKER + zlib.compress(payload)
    at = data.draw(st.integers(0, len(payload) - 1))
    changed = bytes([data.draw(st.integers(0, 255))])
    outcome(DECODER.decode(TASK_ID, payload[:at]))
    outcome(DECODER.decode(TASK_ID, payload[:at] + changed + payload[at + 1 :]))


@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbf{}")
@example(b"\xc7\x03\xff\x00\x00\x00")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
def test_any_bytes(payload: bytes) -> None:
    """Whatever bytes are in the result key."""
    for data in (payload, MARKER + payload, b"\x82\xa6status\xa7SUCCESS\xa6result" + payload):
        outcome(DECODER.decode(TASK_ID, data))


NESTED = {
    "result": b'{"status": "SUCCESS", "result": %s}',
    "results": b'{"status": "SUCCESS", "result": {"status": "success", "results": {"a": %s}}}',
    "error": b'{"status": "SUCCESS", "result": {"status": "error", "error": %s}}',
    "status": b'{"status": "SUCCESS", "result": {"status": %s}}',
    "exc_message": b'{"status": "FAILURE", "result": {"exc_type": "E", "exc_message": %s}}',
    "exc_type": b'{"status": "FAILURE", "result": {"exc_type": %s}}',
    "traceback": b'{"status": "FAILURE", "result": null, "traceback": %s}',
    "children": b'{"status": "SUCCESS", "result": {"status": "success"}, "children": %s}',
    "marked": b'{"status": "SUCCESS", "result": {"__type__": "x", "__value__": %s}}',
}


@pytest.mark.parametrize("place", NESTED)
def test_deep_nesting_in_json(place: str) -> None:
    """However deep, in whatever place: around the depth at which Python gives up, too."""
    for depth in [*range(100, 1100, 11), 100_000]:
        for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
            value = opened * depth + b"1" + closed * depth
            outcome(DECODER.decode(TASK_ID, NESTED[place] % value))


@pytest.mark.parametrize("depth", [100, 500, 508, 512, 100_000])
def test_deep_nesting_in_msgpack(depth: int) -> None:
    """However deep in msgpack."""
    value = b"\x91" * depth + b"\x01"
    outcome(DECODER.decode(TASK_ID, b"\x82\xa6status\xa7SUCCESS\xa6result" + value))
    outcome(DECODER.decode(TASK_ID, b"\x82\xa6status\xa7FAILURE\xa6result" + value))


@pytest.mark.parametrize("number", [b"9" * 5000, b"-" + b"9" * 5000, b"1e999999", b"NaN"])
@pytest.mark.parametrize("place", NESTED)
def test_numbers(place: str, number: bytes) -> None:
    """Integers of more digits than Python reads, and what is no number."""
    outcome(DECODER.decode(TASK_ID, NESTED[place] % number))


@pytest.mark.parametrize("module", ["os", "builtins", "subprocess", *NAMED_MODULES])
@pytest.mark.parametrize("name", ["system", "eval", "KeyboardInterrupt", "SystemExit", "x.y"])
@pytest.mark.parametrize("pack", [lambda meta: json.dumps(meta).encode(), msgpack.packb])
def test_names_of_anything(module: str, name: str, pack: Any) -> None:
    """A failure may name what it wants: the module is not imported, the name is text."""
    assert module not in NAMED_MODULES or module not in sys.modules
    failure = {"exc_module": module, "exc_type": name, "exc_message": ["true"]}
    error = outcome(DECODER.decode(TASK_ID, pack({"status": "FAILURE", "result": failure})))
    assert isinstance(error, TaskExecutionError)
    assert error.error_details["exception_type"] == name
    assert error.error_details["exception_module"] == module
    assert module not in NAMED_MODULES or module not in sys.modules


class Evil:
    """Its pickle calls a function."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("place", NESTED)
def test_pickles_in_any_place(place: str) -> None:
    """A pickle inside a document is text or bytes like any other."""
    for protocol_number in range(pickle.HIGHEST_PROTOCOL + 1):
        bomb = pickle.dumps(Evil(), protocol_number)
        outcome(
            DECODER.decode(TASK_ID, NESTED[place] % json.dumps(bomb.decode("latin-1")).encode())
        )
        outcome(DECODER.decode(TASK_ID, MARKER + zlib.compress(bomb)))
        meta = {"status": "FAILURE", "result": {"exc_type": bomb, "exc_message": bomb}}
        assert isinstance(outcome(DECODER.decode(TASK_ID, msgpack.packb(meta))), OperatorError)


@pytest.mark.parametrize(
    "marked",
    [
        {"__type__": "nothing", "__value__": 1},
        {"__type__": None, "__value__": 1},
        {"__type__": [], "__value__": 1},
        {"__type__": "uuid", "__value__": {"hex": "x"}},
        {"__type__": "uuid", "__value__": {"int": -1}},
        {"__type__": "uuid", "__value__": 5},
        {"__type__": "datetime", "__value__": 5},
        {"__type__": "date", "__value__": "yesterday"},
        {"__type__": "time", "__value__": "25:00"},
        {"__type__": "decimal", "__value__": "x"},
        {"__type__": "base64", "__value__": "abc"},
        {"__type__": "bytes", "__value__": 5},
        {"__type__": "os.system", "__value__": "true"},
    ],
)
def test_bad_markers(marked: dict[str, Any]) -> None:
    """A marker that kombu does not know, or with a wrong value, is a typed error."""
    payload = json.dumps({"status": "SUCCESS", "result": {"status": "success", "x": marked}})
    for spelt in (payload, payload.replace("__type__", "\\u005f_type__")):
        document = DECODER.decode(TASK_ID, spelt.encode())
        assert isinstance(document.failure, InvalidResultFormatError), spelt
        assert document.failure.result == spelt.encode()


def test_duplicate_keys() -> None:
    """Of a key that stands twice the last counts, as for kombu."""
    payload = b'{"status": "FAILURE", "result": {"status": "success"}, "status": "SUCCESS"}'
    assert not isinstance(outcome(DECODER.decode(TASK_ID, payload)), OperatorError)


def test_another_tasks_document() -> None:
    """A document is that of the key where it stands, whatever task it claims to be of."""
    meta = {"status": "SUCCESS", "result": {"status": "success"}, "task_id": "another"}
    assert DECODER.decode(TASK_ID, json.dumps(meta).encode()).task_id == TASK_ID


def test_nothing_holds_on_to_the_bytes() -> None:
    """An unreadable document is gone with its last reference, without Python's collector."""
    gc.collect()
    gc.disable()
    try:
        for payload in (b"[" * 10, b'{"__type__": 1, "__value__": 1}', MARKER + b"x"):
            assert DECODER.decode(TASK_ID, payload).fault is not None
        assert gc.collect() == 0
    finally:
        gc.enable()


zones = st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5)
)
json_only = (
    st.datetimes(timezones=st.none() | st.just(UTC) | zones)
    | st.dates()
    | st.times()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.text(max_size=5)
    | st.integers()
)


def containers(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return objects, lists and tuples of leaves."""
    keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=8,
    )


def assert_read_as_by_kombu(value: Any, serializer: str) -> None:
    """Check that what kombu writes is read as kombu reads it."""
    meta = {"status": "SUCCESS", "result": value}
    content_type, encoding, written = dumps(meta, serializer=serializer)
    payload = written.encode() if isinstance(written, str) else written
    theirs = loads(payload, content_type, encoding, accept={content_type})
    ours = DocumentDecoder(serializer, ["json", "msgpack"]).decode(TASK_ID, payload).reply()
    assert ours == theirs["result"]
    assert repr(ours) == repr(theirs["result"])


@given(containers(scalars | json_only))
@example(datetime(2026, 1, 2, tzinfo=UTC))
@example([date(2026, 1, 2), time(3, 4)])
def test_json_is_read_as_by_kombu(value: Any) -> None:
    """Every type of kombu's JSON: dates, times, bytes, UUIDs, decimals, tuples."""
    assert_read_as_by_kombu(value, "json")


@given(containers(scalars | st.builds(msgpack.Timestamp, st.integers(0, 2**34), st.just(1))))
@example([msgpack.ExtType(5, b"x")])
def test_msgpack_is_read_as_by_kombu(value: Any) -> None:
    """Every type of msgpack: bytes, tuples, extension types."""
    assert_read_as_by_kombu(value, "msgpack")
