"""Compressed results are unpacked as kombu does, but up to a limit."""

import bz2
import lzma
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import compression

from sandai.op.models import InvalidResultFormatError
from sandai.op.transport import DocumentDecoder, _compression
from sandai.op.transport._compression import MAX_BYTES, decompressed

MARKER = b"\x00celery-compressed\x00"
#: What is installed here: three of the standard library, zstd and brotli in the test group.
METHODS = sorted(compression.encoders())
#: Of the decoders; zlib's and bz2's among them.
ERRORS = [zlib.error, lzma.LZMAError]
ERRORS += [
    getattr(module, name)
    for module, name in [
        (vars(compression).get("brotli"), "error"),
        (vars(compression).get("zstd"), "ZstdError"),
    ]
    if module is not None
]
each_method = pytest.mark.parametrize("method", METHODS)


def packed(data: bytes, method: str) -> bytes:
    """Return what Celery 5.7 stores of *data*."""
    body, content_type = compression.compress(data, method)
    return MARKER + bytes(content_type, "ascii") + b"\x00" + bytes(body)


@given(st.sampled_from(METHODS), st.binary(max_size=300))
def test_unpacked_as_kombu_does(method: str, data: bytes) -> None:
    """Whatever kombu compresses, by whichever method, comes back."""
    assert decompressed(packed(data, method)) == data


@given(st.binary(max_size=50))
def test_what_is_not_compressed(data: bytes) -> None:
    """Other bytes are left alone."""
    assert decompressed(b"{" + data) == b"{" + data


@each_method
def test_limit(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to the limit is read; with one byte more it is refused."""
    monkeypatch.setattr(_compression, "MAX_BYTES", 100_000)
    assert len(decompressed(packed(bytes(100_000), method))) == 100_000
    with pytest.raises(ValueError, match="more than 100000 bytes"):
        decompressed(packed(bytes(100_001), method))


@each_method
def test_bomb(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a document that unpacks to much more, no more than the limit is ever unpacked."""
    bomb = packed(bytes(50_000_000), method)
    monkeypatch.setattr(_compression, "MAX_BYTES", 1_000_000)
    tracemalloc.start()
    try:
        document = DocumentDecoder("json", ["json", "msgpack"]).decode("id", bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Brotli's buffer grows by pieces of up to its window.
    assert peak < 25_000_000
    error = document.failure
    assert isinstance(error, InvalidResultFormatError)
    assert "more than 1000000 bytes" in str(error)
    assert error.result == bomb  # the stored bytes, as small as they are
    assert len(str(error)) < 200


def test_limit_is_what_it_is() -> None:
    """A document just beyond the limit that really holds is refused."""
    with pytest.raises(ValueError, match=str(64 * 1024 * 1024)):
        decompressed(packed(bytes(MAX_BYTES + 1), "zlib"))


@each_method
def test_cut_short(method: str) -> None:
    """A document that was cut short anywhere is refused."""
    whole = packed(bytes(range(256)) * 4, method)
    start = whole.index(b"\x00", len(MARKER)) + 1
    for end in range(start, len(whole)):
        with pytest.raises(Exception):  # noqa: B017, PT011  # each decoder has its own
            decompressed(whole[:end])


@each_method
def test_followed_by_something(method: str) -> None:
    """What has more after its end is refused, and not read on."""
    with pytest.raises(Exception):  # noqa: B017, PT011
        decompressed(packed(b"{}", method) + b"more")


@pytest.mark.parametrize(
    ("content_type", "compress"),
    [("application/x-bz2", bz2.compress), ("application/x-lzma", lzma.compress)],
)
def test_many_streams(content_type: str, compress: Callable[[bytes], bytes]) -> None:
    """A hundred thousand empty streams cost no time: a result is one stream."""
    payload = MARKER + content_type.encode() + b"\x00" + compress(b"") * 100_000
    with pytest.raises(ValueError, match="follows its end"):
        decompressed(payload)


def test_lzma_dictionary() -> None:
    """A header that asks for a dictionary of gigabytes is refused."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    body = lzma.compress(b"{}", filters=filters)
    with pytest.raises(lzma.LZMAError, match=r"[Mm]emory"):
        decompressed(MARKER + b"application/x-lzma\x00" + body)
    highest = lzma.compress(b"{}", preset=9)
    assert decompressed(MARKER + b"application/x-lzma\x00" + highest) == b"{}"


def test_unknown_type() -> None:
    """A type that kombu does not know is refused."""
    with pytest.raises(LookupError, match="not known"):
        decompressed(MARKER + b"application/x-nothing\x00{}")


def test_packed_twice() -> None:
    """What was compressed twice is unpacked once, as Celery does, and then no document."""
    twice = packed(packed(b'{"status": "SUCCESS"}', "zlib"), "zlib")
    document = DocumentDecoder("json", ["json", "msgpack"]).decode("id", twice)
    assert isinstance(document.failure, InvalidResultFormatError)


def test_method_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the application registered itself is used, and its result measured."""
    decoders: Any = vars(compression)["_decoders"]
    monkeypatch.setitem(decoders, "application/own", lambda body: body * 3)
    assert decompressed(MARKER + b"application/own\x00ab") == b"ababab"
    monkeypatch.setattr(_compression, "MAX_BYTES", 5)
    with pytest.raises(ValueError, match="more than 5 bytes"):
        decompressed(MARKER + b"application/own\x00ab")


@given(st.sampled_from(METHODS), st.binary(max_size=60))
def test_any_body(method: str, body: bytes) -> None:
    """Whatever follows the marker, an exception is all that it can cause."""
    _, content_type = compression.get_encoder(method)
    with suppress(ValueError, OSError, EOFError, *ERRORS):
        decompressed(MARKER + content_type.encode() + b"\x00" + body)


def test_flipped_bits() -> None:
    """Damage that a checksum tells is told."""
    whole = bytearray(packed(b"x" * 1000, "zlib"))
    whole[-1] ^= 1
    with pytest.raises(zlib.error):
        decompressed(bytes(whole))
