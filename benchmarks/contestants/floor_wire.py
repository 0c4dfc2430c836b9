"""
What the floor's scripts share: the message, made once, and the commands.

The floor is the same Redis work as ours with no library in between. Each task is pushed with
LPUSH; its result channel is subscribed to and then its key looked at once (MGET), so that no
result is missed; the result comes as a push message; then the channel is left and the key
deleted. All of it on redis-py's plain connections, one to the broker and one in RESP3 to the
backend, many tasks to a command where many are there at a time.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from hiredis import PushNotification
from redis.backoff import NoBackoff

from .job import Job

PREFIX = b"celery-task-meta-"
MOST_TASKS = 500
"""How many tasks go into one command at most."""
_ID = b"00000000-0000-0000-0000-000000000000"
_KWARGS = {"meta": {"persistent-output": False}, "artifacts": [], "options": {"number": 0}}
_NO_CALLBACKS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def message(job: Job) -> bytes:
    """Return a task of Celery's protocol 2 in kombu's envelope, to be stamped with its id."""
    task_id = _ID.decode()
    body = json.dumps([[], _KWARGS, _NO_CALLBACKS]).encode()
    headers = {
        "lang": "py",
        "task": job.task_name,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "origin": "floor",
        "ignore_result": None,
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": job.queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": task_id,
    }
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(envelope).encode()


def new_id() -> bytes:
    """Return an id that nobody can guess, as Celery's are."""
    return str(uuid4()).encode()


def stamped(template: bytes, task_id: bytes) -> bytes:
    """Return the message of this id."""
    return template.replace(_ID, task_id)


def check(document: bytes) -> None:
    """Decode a result, and see that it is one."""
    if json.loads(document)["result"]["results"] != _KWARGS["options"]:
        raise AssertionError(f"{document!r} is not the answer")


def connection_kwargs(url: str, protocol: int) -> dict[str, Any]:
    """Return the arguments of redis-py's connection, of either colour."""
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port,
        "db": int(parts.path.strip("/") or 0),
        "protocol": protocol,
        "socket_timeout": None,
    }


def without_retry(retry: Any) -> Any:
    """Return a policy, of redis-py's class for the colour, that repeats nothing."""
    return retry(NoBackoff(), 0)


class Books:
    """Which replies are awaited on the push connection, and what the responses mean."""

    def __init__(self) -> None:
        # The keys of an MGET; None stands for a DEL.
        self._awaited: deque[Sequence[bytes] | None] = deque()

    def commands(self, leave: Sequence[bytes], join: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Return the commands for tasks that are done and for new ones; note their replies."""
        commands: list[tuple[Any, ...]] = []
        if leave:
            commands += [("UNSUBSCRIBE", *leave), ("DEL", *leave)]
            self._awaited.append(None)
        if join:
            commands += [("SUBSCRIBE", *join), ("MGET", *join)]
            self._awaited.append(join)
        return commands

    def documents(self, response: Any) -> Iterable[tuple[bytes, bytes]]:
        """Return the keys and documents of the results in a response."""
        if type(response) is PushNotification:
            return [(response[1], response[2])] if response[0] == b"message" else ()
        keys = self._awaited.popleft()
        if keys is None:
            return ()
        return [found for found in zip(keys, response, strict=True) if found[1] is not None]


def take(waiting: deque[bytes]) -> list[bytes]:
    """Take what goes into one command; others may add meanwhile."""
    return [waiting.popleft() for _ in range(min(len(waiting), MOST_TASKS))]
