"""The commands on keys that our clients and Celery's workers send, and what Redis answers."""

from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Protocol

from .._redis_push import PUSH_ONCE
from ._resp import OK, Failure, Reply
from ._store import Store

Command = Sequence[bytes]

_SCRIPT = PUSH_ONCE.encode()
_DIGEST = sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_UNKNOWN_SCRIPT = Failure("ERR unknown script: memory:// runs none but its clients' own")
_SYNTAX = Failure("ERR syntax error")


class Keyspace(Protocol):
    """A store, and what pushing to a list and publishing cause besides."""

    store: Store

    def push(self, key: bytes, values: Sequence[bytes]) -> int: ...
    def publish(self, channel: bytes, payload: bytes) -> int: ...


def _publish(keys: Keyspace, command: Command) -> Reply:
    return keys.publish(command[1], command[2])


def _get(keys: Keyspace, command: Command) -> Reply:
    return keys.store.get(command[1])


def _mget(keys: Keyspace, command: Command) -> Reply:
    return keys.store.get_many(command[1:])


def _set(keys: Keyspace, command: Command) -> Reply:
    seconds, absent, options = None, False, list(command[3:])
    while options:
        option = options.pop(0).upper()
        if option == b"NX":
            absent = True
        elif option in (b"EX", b"PX") and options:
            seconds = int(options.pop(0)) / (1 if option == b"EX" else 1000)
        else:
            return _SYNTAX
    if seconds is not None and seconds <= 0:
        return Failure("ERR invalid expire time in 'set' command")
    if absent and keys.store.exists(command[1]):
        return None
    keys.store.set(command[1], command[2], seconds)
    return OK


def _setex(keys: Keyspace, command: Command) -> Reply:
    seconds = int(command[2])
    if seconds <= 0:
        return Failure("ERR invalid expire time in 'setex' command")
    keys.store.set(command[1], command[3], seconds)
    return OK


def _del(keys: Keyspace, command: Command) -> Reply:
    return keys.store.delete(command[1:])


def _exists(keys: Keyspace, command: Command) -> Reply:
    return sum(map(keys.store.exists, command[1:]))


def _dbsize(keys: Keyspace, _: Command) -> Reply:
    return len(keys.store)


def _lpush(keys: Keyspace, command: Command) -> Reply:
    return keys.push(command[1], command[2:])


def _rpop(keys: Keyspace, command: Command) -> Reply:
    return keys.store.pop(command[1])


def _llen(keys: Keyspace, command: Command) -> Reply:
    return keys.store.length(command[1])


def _lrem(keys: Keyspace, command: Command) -> Reply:
    return keys.store.remove(command[1], int(command[2]), command[3])


def _lrange(keys: Keyspace, command: Command) -> Reply:
    values = keys.store.values(command[1])
    first, last = int(command[2]), int(command[3])
    first = max(0, first + len(values)) if first < 0 else first
    last = last + len(values) if last < 0 else last
    return values[first : max(0, last + 1)]


def _script(_: Keyspace, command: Command) -> Reply:
    if [command[1].upper(), *command[2:]] == [b"LOAD", _SCRIPT]:
        return _DIGEST
    return _UNKNOWN_SCRIPT


def _eval(keys: Keyspace, command: Command) -> Reply:
    return _push_once(keys, command) if command[1] == _SCRIPT else _UNKNOWN_SCRIPT


def _evalsha(keys: Keyspace, command: Command) -> Reply:
    if command[1].lower() != _DIGEST:
        return Failure("NOSCRIPT No matching script. Please use EVAL.")
    return _push_once(keys, command)


def _push_once(keys: Keyspace, command: Command) -> Reply:
    """Do what ``PUSH_ONCE`` says, which see."""
    count = int(command[2])
    key, *markers = command[3 : 3 + count]
    lifetime, *messages = command[3 + count :]
    new = [
        (marker, message)
        for marker, message in zip(markers, messages, strict=True)
        if not keys.store.exists(marker)
    ]
    if new:
        keys.push(key, [message for _, message in new])
    for marker, _ in new:
        keys.store.set(marker, b"", int(lifetime) / 1000)
    return len(new)


#: Each with the fewest words that it takes.
COMMANDS: dict[bytes, tuple[Callable[[Keyspace, Command], Reply], int]] = {
    b"DBSIZE": (_dbsize, 1),
    b"DEL": (_del, 2),
    b"EVAL": (_eval, 3),
    b"EVALSHA": (_evalsha, 3),
    b"EXISTS": (_exists, 2),
    b"GET": (_get, 2),
    b"LLEN": (_llen, 2),
    b"LPUSH": (_lpush, 3),
    b"LRANGE": (_lrange, 4),
    b"LREM": (_lrem, 4),
    b"MGET": (_mget, 2),
    b"PUBLISH": (_publish, 3),
    b"RPOP": (_rpop, 2),
    b"SCRIPT": (_script, 2),
    b"SET": (_set, 3),
    b"SETEX": (_setex, 4),
}
