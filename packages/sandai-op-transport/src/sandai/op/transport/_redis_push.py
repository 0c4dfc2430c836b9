"""Which commands queue a batch of messages, and what their replies mean."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from attrs import define, field, frozen
from redis.exceptions import ReadOnlyError, ResponseError

from sandai.op.models import InvalidTaskError, OperatorError

from ._broker import Outcome
from ._errors import TransportError
from ._message import TaskMessage
from ._redis import Command, RedisConnector
from ._redis_envelope import EnvelopeRenderer

#: Messages that go out in one write, as a rule.
MESSAGES_PER_WRITE = 500
_BYTES_PER_WRITE = 4 * 1024 * 1024


@frozen
class Write:
    """Commands that go out together; ``positions`` are those of each one's messages."""

    commands: list[Command]
    positions: list[list[int]]


#: A list's key and the envelope that goes there.
Item = tuple[str, bytes]


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
            self.items.append((key, self._broker.renderer.render(message)))
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
class PushPlan:
    """
    Keep account of every envelope while many are pushed.

    Whoever does the I/O executes each of :meth:`writes` and reports to
    :meth:`answered` or :meth:`broke_off`, then calls :meth:`finish`.
    """

    _connector: RedisConnector
    _items: Sequence[Item]
    _outcomes: dict[int, Outcome] = field(factory=dict, init=False)

    def writes(self) -> Iterator[Write]:
        """Yield the writes, in order: one LPUSH for neighbours of the same queue."""
        commands: list[list[str | bytes]] = []
        positions: list[list[int]] = []
        size = count = 0
        for position, (key, envelope) in enumerate(self._items):
            if count and (count >= MESSAGES_PER_WRITE or size + len(envelope) > _BYTES_PER_WRITE):
                yield Write([tuple(command) for command in commands], positions)
                commands, positions, size, count = [], [], 0, 0
            if not commands or commands[-1][1] != key:
                commands.append(["LPUSH", key])
                positions.append([])
            commands[-1].append(envelope)
            positions[-1].append(position)
            size, count = size + len(envelope), count + 1
        if commands:
            yield Write([tuple(command) for command in commands], positions)

    def answered(self, write: Write, replies: Sequence[Any]) -> None:
        """
        Note the replies to a write's commands.

        Raises :class:`TransportError` when the server is no master any more: the
        rest need not be tried there, and the connection is of no more use.
        """
        self._note(write, replies)
        for reply in replies:
            if isinstance(reply, ReadOnlyError):
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


def interrupted(error: BaseException) -> TransportError:
    """Return the outcome of what was being written when *error* was raised."""
    if isinstance(error, TransportError):
        return error
    return TransportError(f"submitting was interrupted ({type(error).__name__})", True)
