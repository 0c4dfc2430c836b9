"""How a world can fail its clients: in the ways in which a Redis does."""

from typing import Literal, get_args

from attrs import frozen

Kind = Literal[
    "refused", "stalled", "swallowed", "out-of-memory", "read-only", "no-auth", "loading"
]
Side = Literal["broker", "backend"]

KINDS: tuple[str, ...] = get_args(Kind)
SIDES: tuple[str, ...] = get_args(Side)

_OUT_OF_MEMORY = "OOM command not allowed when used memory > 'maxmemory'."
_READ_ONLY = "READONLY You can't write against a read only replica."
_NO_AUTH = "NOAUTH Authentication required."
_LOADING = "LOADING Redis is loading the dataset in memory"

_GROWING = frozenset({b"LPUSH", b"RPUSH", b"SET", b"SETEX", b"PSETEX", b"EVAL", b"EVALSHA"})
_WHILE_LOADING = frozenset(
    b"AUTH CLIENT DISCARD EXEC HELLO INFO MULTI PUBLISH QUIT ROLE SUBSCRIBE UNSUBSCRIBE".split()
)
_WRITING = _GROWING | {b"DEL", b"UNLINK", b"LREM", b"RPOP"}


@frozen(eq=False)
class Outage:
    """One way to fail, of one side's connections or of all."""

    kind: Kind
    side: Side | None = None

    def concerns(self, side: str) -> bool:
        """Return whether connections of a side are failed."""
        return self.side is None or self.side == side

    @property
    def cuts(self) -> bool:
        """Whether connections that are open when it begins end."""
        return self.kind in ("refused", "no-auth")

    def refusal(self, command: bytes) -> str | None:
        """Return the error reply to a command, ``None`` if it is executed."""
        if self.kind == "out-of-memory" and command in _GROWING:
            return _OUT_OF_MEMORY
        if self.kind == "read-only" and command in _WRITING:
            return _READ_ONLY
        if self.kind == "no-auth" and command not in (b"AUTH", b"QUIT"):
            return _NO_AUTH
        if self.kind == "loading" and command not in _WHILE_LOADING:
            return _LOADING
        return None
