"""
Push over one RESP3 connection: what to send for a change, what a response means.

In RESP3 a subscribed connection takes commands too, so that SUBSCRIBE and the
first look at the same tasks go out together, in that order: a result that was
stored before the subscription is in the look, one stored later is pushed.
"""

import logging
import sys
from collections import deque
from enum import Enum
from typing import Any

from attrs import define, field, frozen
from hiredis import PushNotification
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from ._documents import ResultDocument
from ._redis import Command, RedisConnection
from ._redis_backend import RedisBackend
from ._redis_refusals import is_demoted
from ._waiters import Changes

logger = logging.getLogger("sandai.op.transport")

#: How servers say that push is not allowed (ACL) or not known (RESP3, a proxy).
_FOR_GOOD = ("NOPERM", "No permissions", "no permissions", "unknown command", "NOPROTO")
_ACKNOWLEDGED = (b"subscribe", b"unsubscribe", "subscribe", "unsubscribe")


@define(eq=False)
class Pushed:
    """An out-of-band message of the server, told apart from a command's reply."""

    parts: list[Any]


def ready_responses(connection: Any, most: int = sys.maxsize) -> list[Any]:
    """
    Return at most *most* responses that a connection has read and not handed out.

    *connection* is redis-py's, of either colour, which has no public way: its own
    call for a response is one for each, and several times as slow. Error replies stand
    in the list.
    """
    reader = getattr(connection._parser, "_reader", None)
    responses: list[Any] = []
    while reader is not None and len(responses) < most:
        response = reader.gets()
        if response is NOT_ENOUGH_DATA:
            break
        if isinstance(response, RedisConnectionError):
            raise response  # as redis-py does
        pushed = isinstance(response, PushNotification)
        responses.append(Pushed(response) if pushed else response)
    return responses


@frozen
class _Deleted:
    task_ids: list[str]


@define
class _Acknowledged:
    """A SUBSCRIBE or an UNSUBSCRIBE: so many pushed acknowledgements, or one error, are to come."""

    channels: int


class PushRefused(Exception):
    """The server answered with an error; ``for_good`` when it never will otherwise."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.for_good = any(word in reason for word in _FOR_GOOD)


class Health(Enum):
    """What to do about a push connection: nothing, ask for a sign of life, reconnect."""

    FINE = "fine"
    ASK = "ask"
    LOST = "lost"


@define
class PushSession:
    """
    The state of one push connection; whoever does the I/O feeds it.

    Times are of ``time.monotonic()``.
    """

    _backend: RedisBackend
    _last_heard: float
    _last_sent: float = field(default=0.0, init=False)
    #: What the coming replies answer, in order: looked-at tasks, deleted ones, channels, or
    #: ``None``. Redis acknowledges channels in its replies' order, so that an error is whose
    #: turn it is, whatever it says.
    _expected: deque[list[str] | _Deleted | _Acknowledged | None] = field(factory=deque, init=False)
    _deletion_refused: bool = field(default=False, init=False)

    def prepare(self, connection: RedisConnection) -> None:
        """Have redis-py hand out pushed messages as :class:`Pushed`."""
        # As redis-py's own PubSub does; there is no public way.
        connection._parser.set_pubsub_push_handler(Pushed)  # type: ignore[attr-defined]  # private

    def prepare_async(self, connection: Any) -> None:
        """Do the same for a connection of ``redis.asyncio``, whose handler is awaited."""

        async def pushed(parts: list[Any]) -> Pushed:
            return Pushed(parts)

        connection._parser.set_pubsub_push_handler(pushed)

    def commands(self, changes: Changes, *, look: bool = True) -> list[Command]:
        """Return the commands for *changes*; with *look*, look at what is joined."""
        key = self._backend.key
        commands: list[Command] = []
        if changes.leave:
            commands.append(("UNSUBSCRIBE", *map(key, changes.leave)))
            self._expected.append(_Acknowledged(len(changes.leave)))
        if changes.delete:
            commands.append(("DEL", *map(key, changes.delete)))
            self._expected.append(_Deleted(changes.delete))
        if changes.join:
            keys = [key(task_id) for task_id in changes.join]
            commands.append(("SUBSCRIBE", *keys))
            self._expected.append(_Acknowledged(len(keys)))
            if look:
                commands.append(("MGET", *keys))
                self._expected.append(changes.join)
        return commands

    def ping(self) -> Command:
        """Return a command whose reply shows that the connection lives."""
        self._expected.append(None)
        return ("PING",)

    @property
    def awaiting(self) -> bool:
        """Whether replies are outstanding."""
        return bool(self._expected)

    def sent(self, now: float) -> None:
        """Note that commands went out."""
        # The first since the last sign of life counts: who keeps writing into a
        # dead connection must not keep it alive.
        if self._last_sent <= self._last_heard:
            self._last_sent = now

    def health(self, now: float) -> Health:
        """Tell a half-open connection, which is silent for good, from an idle one."""
        limit = self._backend.connector.io_timeout
        if self._expected:
            overdue = now - max(self._last_heard, self._last_sent) > limit
            return Health.LOST if overdue else Health.FINE
        return Health.ASK if now - self._last_heard > limit else Health.FINE

    def receive(self, response: Any, now: float) -> tuple[list[ResultDocument], bool]:
        """
        Return the documents in a response, and whether they were pushed.

        Raises :class:`PushRefused` for an error reply.
        """
        self._last_heard = now
        if isinstance(response, Pushed):
            return self._pushed(response.parts), True
        if isinstance(response, ResponseError):
            return self._refused(response), False
        asked = self._expected.popleft() if self._expected else None
        while isinstance(asked, _Acknowledged):  # by a proxy that says nothing of it
            asked = self._expected.popleft() if self._expected else None
        if not isinstance(asked, list):
            return [], False
        return self._backend.documents(asked, response), False

    def deleting(self) -> list[str]:
        """Return the tasks whose deletion was not acknowledged."""
        pending = [item.task_ids for item in self._expected if isinstance(item, _Deleted)]
        return [task_id for task_ids in pending for task_id in task_ids]

    def _refused(self, error: ResponseError) -> list[ResultDocument]:
        asked = self._expected.popleft() if self._expected else None
        moved = is_demoted(error) and self._backend.connector.address.sentinels
        if moved or not isinstance(asked, _Deleted):
            if isinstance(asked, _Deleted):
                self._expected.appendleft(asked)  # to be deleted where the master is now
            raise PushRefused(str(error))
        # Who may not delete may be pushed results all the same; they expire.
        if not self._deletion_refused:
            self._deletion_refused = True
            logger.warning("read results are not deleted, they expire: %s", str(error))
        return []

    def _pushed(self, parts: list[Any]) -> list[ResultDocument]:
        kind = parts[0]
        if kind not in (b"message", "message"):
            self._acknowledge(kind)
            return []
        return [self._backend.decoder.decode(self._backend.task_id(parts[1]), parts[2])]

    def _acknowledge(self, kind: object) -> None:
        asked = self._expected[0] if self._expected else None
        if isinstance(asked, _Acknowledged) and kind in _ACKNOWLEDGED:
            asked.channels -= 1
            if not asked.channels:
                self._expected.popleft()
