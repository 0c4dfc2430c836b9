"""Documents made to do harm, each with the error that its own task is to get."""

from __future__ import annotations

import bz2
import json
import lzma
import pickle
import zlib
from typing import Any

import msgpack

from sandai.op.models import (
    InvalidResultFormatError,
    InvalidTaskStatusError,
    OperatorError,
    TaskCancelledError,
    TaskDeadlineExceededError,
    TaskExecutionError,
)

MARKER = b"\x00celery-compressed\x00"
ANSI = "\x1b[2J\x1b[31mowned\x07\nERROR forged line\r"


class Fatal:
    """Unpickling it ends the process."""

    def __reduce__(self) -> Any:
        return (exec, ("import os; os._exit(66)",))


def _zeros(compressor: Any) -> bytes:
    """Return 100 MiB of spaces, compressed."""
    megabyte = b" " * (1 << 20)
    return b"".join([*(compressor.compress(megabyte) for _ in range(100)), compressor.flush()])


def _success(result: Any, **more: Any) -> bytes:
    return json.dumps({"status": "SUCCESS", "result": result, **more}).encode()


def _failure(result: Any, **more: Any) -> bytes:
    return json.dumps({"status": "FAILURE", "result": result, **more}).encode()


def _error(error: Any) -> bytes:
    return _success({"status": "error", "error": error})


def _within(opened: bytes, closed: bytes, depth: int, around: bytes) -> bytes:
    return around % (opened * depth + b"1" + closed * depth)


IN_RESULT = b'{"status": "SUCCESS", "result": %s}'
IN_MESSAGE = b'{"status": "FAILURE", "result": {"exc_type": "E", "exc_message": %s}}'
PICKLED = pickle.dumps({"status": "SUCCESS", "result": Fatal()})

HOSTILE: dict[str, tuple[bytes, type[OperatorError]]] = {
    "gzip bomb": (
        MARKER + b"application/x-gzip\x00" + _zeros(zlib.compressobj()),
        InvalidResultFormatError,
    ),
    "bzip2 bomb": (
        MARKER + b"application/x-bz2\x00" + _zeros(bz2.BZ2Compressor()),
        InvalidResultFormatError,
    ),
    "lzma bomb": (
        MARKER + b"application/x-lzma\x00" + _zeros(lzma.LZMACompressor(preset=0)),
        InvalidResultFormatError,
    ),
    "many streams": (
        MARKER + b"application/x-bz2\x00" + bz2.compress(b"") * 10_000,
        InvalidResultFormatError,
    ),
    "cut short": (
        MARKER + b"application/x-gzip\x00" + zlib.compress(_success({"status": "success"}))[:-6],
        InvalidResultFormatError,
    ),
    "nested lists": (_within(b"[", b"]", 200_000, IN_RESULT), InvalidResultFormatError),
    "nested objects": (_within(b'{"a":', b"}", 200_000, IN_RESULT), InvalidResultFormatError),
    "nested message": (_within(b"[", b"]", 700, IN_MESSAGE), TaskExecutionError),
    "nested msgpack": (
        b"\x82\xa6status\xa7SUCCESS\xa6result" + b"\x91" * 100_000,
        InvalidResultFormatError,
    ),
    "huge integer": (IN_RESULT % (b"7" * 100_000), InvalidResultFormatError),
    "msgpack that claims 4 GB": (b"\xdf\xff\xff\xff\xff", InvalidResultFormatError),
    "pickle": (PICKLED, InvalidResultFormatError),
    "pickle inside": (
        msgpack.packb({"status": "FAILURE", "result": {"exc_type": "E", "exc_message": PICKLED}}),
        TaskExecutionError,
    ),
    "pickle compressed": (
        MARKER + b"application/x-gzip\x00" + zlib.compress(PICKLED),
        InvalidResultFormatError,
    ),
    "yaml": (b"!!python/object/apply:os._exit [66]", InvalidResultFormatError),
    "unknown marker": (
        _success({"__type__": "os._exit", "__value__": 66}),
        InvalidResultFormatError,
    ),
    "bad base64": (_success({"__type__": "base64", "__value__": "abc"}), InvalidResultFormatError),
    "extension type": (
        b"\x82\xa6status\xa7SUCCESS\xa6result\xc7\x03\xffabc",
        InvalidResultFormatError,
    ),
    "names a function": (
        _failure({"exc_module": "os", "exc_type": "_exit", "exc_message": [66]}),
        TaskExecutionError,
    ),
    "names a module": (
        _failure({"exc_module": "antigravity", "exc_type": "x", "exc_message": None}),
        TaskExecutionError,
    ),
    "escapes in a message": (
        _error({"error_type": ANSI, "error_message": ANSI}),
        TaskExecutionError,
    ),
    "escapes in a status": (_success({"status": ANSI}), InvalidTaskStatusError),
    "escapes in a failure": (
        _failure({"exc_type": ANSI, "exc_message": ANSI}, traceback=ANSI),
        TaskExecutionError,
    ),
    "a message of megabytes": (_error({"error_message": ANSI * 100_000}), TaskExecutionError),
    "half a surrogate pair": (_error({"error_message": "\ud800"}), TaskExecutionError),
    "a deadline beyond floats": (
        _error({"error_type": "TaskDeadlineExceededError", "error_details": {"deadline": 10**400}}),
        TaskDeadlineExceededError,
    ),
    "a cancel key that is none": (
        _error({"error_type": "TaskCancelledError", "error_details": {"cancel_key": [1]}}),
        TaskCancelledError,
    ),
    "revoked": (b'{"status": "REVOKED", "result": [[]]}', TaskCancelledError),
    "not a number": (IN_RESULT % b"NaN", InvalidResultFormatError),
    "a status that is no text": (b'{"status": {}, "result": {}}', InvalidResultFormatError),
    "keys of bytes": (msgpack.packb({b"status": "SUCCESS"}), InvalidResultFormatError),
}
"""What is stored, and what its own task, and no other, is to be told."""
