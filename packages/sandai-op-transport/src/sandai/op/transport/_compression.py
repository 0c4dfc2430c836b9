"""Compressed results, as Celery 5.7 stores them: unpacked up to a limit, and no further."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from kombu import compression

#: What a compressed result may unpack to. A few hundred bytes can be made to unpack to
#: gigabytes: what goes on after this is never unpacked.
MAX_BYTES = 64 * 1024 * 1024

#: What Celery 5.7 puts before a compressed document, then its type and a zero byte.
_MARKER = b"\x00celery-compressed\x00"
#: For lzma's dictionary: its highest preset needs 65 MiB, a header may ask for gigabytes.
_LZMA_MEMORY = 128 * 1024 * 1024

Unpack = Callable[[bytes, int], bytes]


def decompressed(payload: bytes) -> bytes:
    """
    Return a stored document without its compression, if it has any.

    kombu's registry of compression methods says which decoder a type has. Those
    that kombu brings stop at :data:`MAX_BYTES`; one that an application has
    registered itself runs as it is. Raises ``ValueError`` for more than that, and
    for what is cut short or followed by something; the decoder's own error for
    damaged bytes, and ``LookupError`` for a type that is not known.
    """
    if not payload.startswith(_MARKER):
        return payload
    content_type, _, body = payload[len(_MARKER) :].partition(b"\x00")
    try:
        decode = compression.get_decoder(content_type.decode())
    except KeyError:
        raise LookupError(f"compression type {content_type.decode()!r} is not known") from None
    unpack = _bounded().get(decode)
    data: bytes = decode(body) if unpack is None else unpack(body, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
    return data


def _bounded() -> dict[Any, Unpack]:
    """Return kombu's decoders, each with one that stops."""
    bounded: dict[Any, Unpack] = {
        zlib.decompress: _stream(zlib.decompressobj),
        bz2.decompress: _stream(bz2.BZ2Decompressor),
        lzma.decompress: _stream(lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)),
    }
    # These two are there when they are installed. With older releases kombu wraps another
    # package for zstd, which is then not among those that stop.
    if (brotli := vars(compression).get("brotli")) is not None:
        bounded[brotli.decompress] = _unpack_brotli
    zstd = vars(compression).get("zstd")
    if zstd is not None and hasattr(zstd, "decompress"):
        bounded[zstd.decompress] = _stream(zstd.ZstdDecompressor)
    return bounded


def _stream(start: Callable[[], Any]) -> Unpack:
    """Return the decoder that the standard library's decompressor objects make."""

    def unpack(body: bytes, most: int) -> bytes:
        decompressor = start()
        data: bytes = decompressor.decompress(body, most)
        if len(data) < most:
            _check_end(decompressor.eof, decompressor.unused_data)
        return data

    return unpack


def _unpack_brotli(body: bytes, most: int) -> bytes:
    decompressor = vars(compression)["brotli"].Decompressor()
    try:
        data: bytes = decompressor.process(body, output_buffer_limit=most)
    except TypeError:
        raise ValueError("brotli before 1.2 cannot stop at a limit") from None
    if len(data) < most:
        _check_end(decompressor.is_finished(), b"")
    return data


def _check_end(reached: bool, unused: bytes) -> None:
    # One result is one stream. Reading on, as some of kombu's decoders do, would copy the
    # rest for each of a million empty ones.
    if not reached:
        raise ValueError("it is cut short")
    if unused:
        raise ValueError("something follows its end")
