"""Replies in the Redis serialization protocol, versions 2 and 3; hiredis reads the commands."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from attrs import frozen


@frozen
class Status:
    """A simple string, as ``+OK``."""

    text: str


@frozen
class Failure:
    """An error reply; the first word of the text is its code."""

    text: str


@frozen
class Pushed:
    """What a subscriber is sent without having asked."""

    parts: Sequence["Reply"]


Reply: TypeAlias = (
    int | bytes | str | Status | Failure | Pushed | Sequence["Reply"] | Mapping[str, "Reply"] | None
)

OK = Status("OK")
QUEUED = Status("QUEUED")


def encode(reply: Reply, protocol: int) -> bytes:
    """Return a reply's bytes in the given version of the protocol."""
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if reply is None:
        return b"_\r\n" if protocol == 3 else b"$-1\r\n"
    if isinstance(reply, Status):
        return b"+%b\r\n" % reply.text.encode()
    if isinstance(reply, Failure):
        return b"-%b\r\n" % reply.text.encode()
    if isinstance(reply, str):
        return encode(reply.encode(), protocol)
    if isinstance(reply, Pushed):
        return _aggregate(b">" if protocol == 3 else b"*", reply.parts, protocol)
    if isinstance(reply, Mapping):
        flat = [part for pair in reply.items() for part in pair]
        head = b"%%%d\r\n" % len(reply) if protocol == 3 else b"*%d\r\n" % len(flat)
        return head + b"".join(encode(part, protocol) for part in flat)
    return _aggregate(b"*", reply, protocol)


def _aggregate(kind: bytes, parts: Sequence[Reply], protocol: int) -> bytes:
    return b"%b%d\r\n" % (kind, len(parts)) + b"".join(encode(part, protocol) for part in parts)
