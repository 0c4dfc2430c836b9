"""A batch on its way into the queues, some hundred tasks at a time."""

from collections.abc import Sequence

from sandai.op.models import ClientPoolTimeoutError, OperatorError

from ._broker import Outcome
from ._errors import TransportError
from ._message import MessageFactory, TaskMessage
from ._operations import Sending
from ._submission import TaskBuilder, TaskControls

#: Tasks that go out together: the operator is at work while the next are prepared.
CHUNK = 500


class BatchOutcomes(list[str | OperatorError]):
    """Each task's id, or why it was not (surely) queued; ``link`` leads to their span, if any."""

    link: object = None


class BatchSubmission:
    """
    Make a batch's messages and keep account of each task.

    Until :attr:`done`, whoever does the I/O calls :meth:`prepare` until it is
    ``False``, sends :attr:`messages` and reports to :meth:`settle`. Raises for
    controls that no task can be sent with, and for what is no batch. *first* is the
    number of the first task, for errors that name it.
    """

    def __init__(
        self,
        builder: TaskBuilder,
        messages: MessageFactory,
        reply_to: str,
        tasks: object,
        controls: TaskControls,
        first: int = 0,
        observed: Sending | None = None,
    ) -> None:
        builder.check(controls)
        self._builder = builder
        self._factory = messages
        self._reply_to = reply_to
        self._tasks = builder.listed(tasks)
        self._controls = controls
        self._first = first
        self._observed = observed
        self._stopped: OperatorError | None = None
        #: What is to be sent now.
        self.messages: list[TaskMessage] = []
        self._positions: list[int] = []
        #: Each task's id, or why it was not (surely) queued.
        self.outcomes = BatchOutcomes()
        if observed is not None:
            self.outcomes.link = observed.link
            observed.counts(len(self._tasks))

    @property
    def done(self) -> bool:
        """Whether every task has its outcome."""
        return len(self.outcomes) == len(self._tasks) and not self.messages

    @property
    def ids(self) -> list[str]:
        """The ids of tasks that are queued, or may be by and by."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, str)]

    def prepare(self) -> bool:
        """Make the next message; return ``False`` when those that are made are to be sent."""
        position = len(self.outcomes)
        if position == len(self._tasks) or len(self.messages) == CHUNK:
            return False
        task = self._tasks[position]
        item = self._builder.item(
            self._factory,
            self._reply_to,
            self._first + position,
            task,
            self._controls,
            self._observed,
        )
        if not isinstance(item, TaskMessage):
            self._refuse(item)
        elif self._stopped is not None:
            self._refuse(self._builder.failure(item, self._stopped))
        else:
            self.outcomes.append(item.task_id)
            self.messages.append(item)
            self._positions.append(position)
        return True

    def _refuse(self, error: OperatorError) -> None:
        self.outcomes.append(error)
        if self._observed is not None:
            self._observed.refused(error)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """
        Note what became of :attr:`messages`.

        When the last could not be queued, because of the broker or for want of a
        connection, the rest of the batch is not tried.
        """
        for position, message, outcome in zip(
            self._positions, self.messages, outcomes, strict=True
        ):
            if outcome is not None:
                self.outcomes[position] = self._builder.failure(message, outcome)
        last = outcomes[-1] if outcomes else None
        if isinstance(last, TransportError):
            self._stopped = last.for_unsent()
        elif isinstance(last, ClientPoolTimeoutError):
            self._stopped = last
        self.messages, self._positions = [], []
