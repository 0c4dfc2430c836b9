"""Strings, lists and expiry: what of a Redis database our clients and operators use."""

import time
from collections import deque
from collections.abc import Callable, Sequence

_SWEEP_AFTER = 1000
_WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"


class WrongType(Exception):
    """The key holds a value of another kind; the text is Redis's."""

    def __init__(self) -> None:
        super().__init__(_WRONG_TYPE)


class Store:
    """
    One database. Not for several threads at once: its world locks.

    An empty list is no key, and what has expired is not there. What nobody asks for any
    more is swept out as new values with an expiry come in, so that memory follows what
    is alive.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._strings: dict[bytes, bytes] = {}
        self._expiries: dict[bytes, float] = {}
        self._lists: dict[bytes, deque[bytes]] = {}
        self._sweep_at = _SWEEP_AFTER

    def __len__(self) -> int:
        self._sweep()
        return len(self._strings) + len(self._lists)

    def keys(self) -> list[bytes]:
        """Return every key."""
        self._sweep()
        return [*self._strings, *self._lists]

    def clear(self) -> None:
        """Delete everything."""
        self._strings.clear()
        self._expiries.clear()
        self._lists.clear()

    def get(self, key: bytes) -> bytes | None:
        """Return a string; raises :class:`WrongType`."""
        if key in self._lists:
            raise WrongType
        if key in self._expiries:
            self._expire(key)
        return self._strings.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return strings; ``None`` for what is none."""
        if self._expiries:
            for key in keys:
                self._expire(key)
        return [self._strings.get(key) for key in keys]

    def set(self, key: bytes, value: bytes, seconds: float | None = None) -> None:
        """Store a string, whatever was there, for so many seconds."""
        self._lists.pop(key, None)
        self._strings[key] = value
        if seconds is None:
            self._expiries.pop(key, None)
            return
        self._expiries[key] = self._clock() + seconds
        if len(self._expiries) > self._sweep_at:
            self._sweep()
            self._sweep_at = max(_SWEEP_AFTER, 2 * len(self._expiries))

    def delete(self, keys: Sequence[bytes]) -> int:
        """Delete; return how many there were."""
        return sum(map(self._delete, keys))

    def exists(self, key: bytes) -> bool:
        """Return whether there is such a key."""
        self._expire(key)
        return key in self._strings or key in self._lists

    def push(self, key: bytes, values: Sequence[bytes]) -> int:
        """Add to the head of a list; return its length. Raises :class:`WrongType`."""
        values_of = self._list(key)
        if values_of is None:
            values_of = self._lists[key] = deque()
        values_of.extendleft(values)
        return len(values_of)

    def pop(self, key: bytes) -> bytes | None:
        """Take the last value of a list, ``None`` if there is none; raises :class:`WrongType`."""
        values = self._list(key)
        if values is None:
            return None
        value = values.pop()
        if not values:
            del self._lists[key]
        return value

    def values(self, key: bytes) -> list[bytes]:
        """Return a list's values, from the head; raises :class:`WrongType`."""
        return list(self._list(key) or ())

    def length(self, key: bytes) -> int:
        """Return how long a list is; raises :class:`WrongType`."""
        return len(self._list(key) or ())

    def remove(self, key: bytes, count: int, value: bytes) -> int:
        """
        Take so many equal values out of a list, from the tail where *count* is negative.

        0 takes out all. Returns how many those were; raises :class:`WrongType`.
        """
        values = self._list(key)
        if values is None:
            return 0
        kept: deque[bytes] = deque()
        removed = 0
        for found in reversed(values) if count < 0 else values:
            if found == value and (count == 0 or removed < abs(count)):
                removed += 1
            else:
                kept.append(found)
        if count < 0:
            kept.reverse()
        if kept:
            self._lists[key] = kept
        else:
            del self._lists[key]
        return removed

    def _list(self, key: bytes) -> deque[bytes] | None:
        self._expire(key)
        if key in self._strings:
            raise WrongType
        return self._lists.get(key)

    def _expire(self, key: bytes) -> None:
        expiry = self._expiries.get(key)
        if expiry is not None and expiry <= self._clock():
            del self._strings[key], self._expiries[key]

    def _delete(self, key: bytes) -> bool:
        self._expire(key)
        self._expiries.pop(key, None)
        if self._strings.pop(key, None) is not None:
            return True
        return self._lists.pop(key, None) is not None

    def _sweep(self) -> None:
        now = self._clock()
        for key in [key for key, expiry in self._expiries.items() if expiry <= now]:
            del self._strings[key], self._expiries[key]
