"""Which commands queue a batch of messages, and what their replies mean."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from attrs import define, field, frozen
from redis.exceptions import ResponseError

from sandai.op.models import InvalidTaskError, OperatorError

from ._broker import Outcome
from ._errors import TransportError
from ._message import TaskMessage
from ._redis import Command, RedisConnector
from ._redis_envelope import EnvelopeRenderer
from ._redis_refusals import is_demoted

#: Messages that go out in one write, as a rule.
MESSAGES_PER_WRITE = 500
_BYTES_PER_WRITE = 4 * 1024 * 1024


@frozen
class Write:
    """Commands that go out together; ``positions`` are those of each one's messages."""

    commands: list[Command]
    positions: list[list[int]]


#: A list's key, the envelope that goes there, and the key of its marker, or ``""``.
Item = tuple[str, bytes, str]

#: Seconds that a marker outlasts its message: longer than a copy of a command that was
#: given up can be on its way, in a server that is frozen or a network that is cut. For as
#: long a task may be submitted again under its id.
TAKEN_ONCE_SECONDS = 60 * 60
#: Pushes those messages that were not pushed before. A script is atomic, for everybody who
#: looks and for replicas and the append-only file, so a message and its marker are there
#: together or not at all, after a crash or a failover too. What the server refuses (memory,
#: a permission, a key of another type) leaves neither, and is told as LPUSH alone would have it.
#: KEYS: the list, and each message's marker. ARGV: milliseconds, and the messages.
PUSH_ONCE = """
local function refused(said)
  if type(said) == 'table' and said.err then
    return redis.error_reply((string.gsub(said.err, '^@user_script: %d+: %-?', '')))
  end
end
local markers, messages, failure = {}, {}, nil
for i = 2, #KEYS do
  local set = redis.pcall('SET', KEYS[i], '', 'PX', ARGV[1], 'NX')
  failure = refused(set)
  if failure then break end
  if set then
    markers[#markers + 1] = KEYS[i]
    messages[#messages + 1] = ARGV[i]
  end
end
if #messages > 0 and not failure then
  failure = refused(redis.pcall('LPUSH', KEYS[1], unpack(messages)))
end
if failure and #markers > 0 then redis.call('DEL', unpack(markers)) end
return failure or #messages
"""
_MOST_FORGOTTEN = 1000


@define
class Rendering:
    """The envelopes of one caller's messages; one too large has its outcome already."""

    _broker: "Renders"
    items: list[Item] = field(factory=list, init=False)
    _refused: dict[int, InvalidTaskError] = field(factory=dict, init=False)

    def add(self, message: TaskMessage) -> None:
        """Render the next message; Celery's signal is sent here, in the caller's context."""
        try:
            key = self._broker.connector.address.key_prefix + message.queue
            marker = marker_of(self._broker.connector, message.task_id) if message.attempt else ""
            self.items.append((key, self._broker.renderer.render(message), marker))
        except InvalidTaskError as error:
            self._refused[len(self.items) + len(self._refused)] = error

    def outcomes(self, written: Sequence[Outcome]) -> list[Outcome]:
        """Return every message's outcome, given those of :attr:`items`."""
        merged = list(written)
        for position, error in self._refused.items():  # in order, so that each falls into place
            merged.insert(position, error)
        return merged


class Renders(Protocol):
    """What knows how messages look on a broker's lists."""

    connector: RedisConnector
    renderer: EnvelopeRenderer


@define
class _Push:
    key: str
    envelopes: list[bytes] = field(factory=list)
    markers: list[str] = field(factory=list)
    positions: list[int] = field(factory=list)

    def command(self) -> Command:
        if not self.markers:
            return ("LPUSH", self.key, *self.envelopes)
        keys = (self.key, *self.markers)
        return ("EVAL", PUSH_ONCE, len(keys), *keys, 1000 * TAKEN_ONCE_SECONDS, *self.envelopes)


@define
class PushPlan:
    """
    Keep account of every envelope while many are pushed.

    Whoever does the I/O executes each of :meth:`writes` and reports to
    :meth:`answered` or :meth:`broke_off`, then calls :meth:`finish`.
    """

    _connector: RedisConnector
    _items: Sequence[Item]
    #: Markers that have served: taken out and deleted with the next write.
    _taken: deque[str] = field(factory=deque)
    _outcomes: dict[int, Outcome] = field(factory=dict, init=False)

    def writes(self) -> Iterator[Write]:
        """Yield the writes, in order: one command for neighbours of the same queue."""
        pushes: list[_Push] = []
        size = count = 0
        for position, (key, envelope, marker) in enumerate(self._items):
            if count and (count >= MESSAGES_PER_WRITE or size + len(envelope) > _BYTES_PER_WRITE):
                yield self._write(pushes)
                pushes, size, count = [], 0, 0
            if not pushes or pushes[-1].key != key or bool(pushes[-1].markers) != bool(marker):
                pushes.append(_Push(key))
            push = pushes[-1]
            push.envelopes.append(envelope)
            push.positions.append(position)
            if marker:
                push.markers.append(marker)
            size, count = size + len(envelope), count + 1
        if pushes:
            yield self._write(pushes)

    def _write(self, pushes: Sequence[_Push]) -> Write:
        commands = [push.command() for push in pushes]
        positions = [push.positions for push in pushes]
        if forgotten := self._forgotten():
            # Before the pushes: one of them may be of a task that was forgotten, to be queued anew.
            commands.insert(0, ("DEL", *forgotten))
            positions.insert(0, [])
        return Write(commands, positions)

    def _forgotten(self) -> list[str]:
        forgotten: list[str] = []
        with suppress(IndexError):  # empty, as others take some too
            while len(forgotten) < _MOST_FORGOTTEN:
                forgotten.append(self._taken.popleft())
        return forgotten

    def answered(self, write: Write, replies: Sequence[Any]) -> None:
        """
        Note the replies to a write's commands.

        Raises :class:`TransportError` when the server is no master any more: the
        rest need not be tried there, and the connection is of no more use.
        """
        self._note(write, replies)
        for reply in replies:
            if isinstance(reply, ResponseError) and is_demoted(reply):
                raise self._connector.failure(reply, maybe_done=False)

    def _note(self, write: Write, replies: Sequence[Any]) -> None:
        for reply, positions in zip(replies, write.positions, strict=False):
            outcome = None
            if isinstance(reply, ResponseError):
                outcome = self._connector.failure(reply, maybe_done=False)
            for position in positions:
                self._outcomes[position] = outcome

    def broke_off(self, write: Write, replies: Sequence[Any], error: TransportError) -> None:
        """Note that the connection broke: what has no reply is in doubt."""
        self._note(write, replies)
        for positions in write.positions[len(replies) :]:
            for position in positions:
                self._outcomes[position] = error

    def finish(self, error: OperatorError | None = None) -> list[Outcome]:
        """Return every envelope's outcome; *error* is why the others were not sent."""
        if isinstance(error, TransportError):
            error = error.for_unsent()
        return [self._outcomes.get(position, error) for position in range(len(self._items))]


def marker_of(connector: RedisConnector, task_id: str) -> str:
    """Return the key that tells that a task's message was pushed."""
    return f"{connector.address.key_prefix}sandai-op:submitted:{task_id}"


def interrupted(error: BaseException) -> TransportError:
    """Return the outcome of what was being written when *error* was raised."""
    if isinstance(error, TransportError):
        return error
    return TransportError(f"submitting was interrupted ({type(error).__name__})", True)
