"""What one last look shows of tasks that were waited for in vain."""

from collections.abc import Iterable

from attrs import define, field

from sandai.op.models import TaskTimeoutError

from ._broker import QueueDepth
from ._documents import ResultDocument

#: Seconds that the look may take, beyond the timeout of who waited.
LOOK_SECONDS = 0.25
#: Tasks of one batch whose documents are looked at; of the others the queues tell.
MOST_LOOKED_AT = 1000


@define
class Evidence:
    """
    The depths of an operator's *queues*, and the states that are stored of tasks.

    It begins empty, and knows what has been noted: nothing is made up.
    """

    queues: tuple[str, ...] = ()
    _depths: dict[str, int] = field(factory=dict, init=False)
    _states: dict[str, str] = field(factory=dict, init=False)
    _finished: set[str] = field(factory=set, init=False)

    def note_depths(self, depths: Iterable[QueueDepth]) -> None:
        """Note how many messages wait."""
        for depth in depths:
            if depth.messages is not None:
                self._depths[depth.queue] = depth.messages

    def note_documents(self, documents: Iterable[ResultDocument]) -> None:
        """Note what is stored of tasks."""
        for document in documents:
            self._states[document.task_id] = document.state
            if document.ready:
                self._finished.add(document.task_id)

    def error(
        self, task_id: str, timeout: float | None, queue: str | None = None
    ) -> TaskTimeoutError:
        """
        Return the error that says what became of a task.

        *queue* is where it was sent, ``None`` if that is not known: any of the operator's.
        """
        depth = self._depth(queue)
        stored = self._states.get(task_id)
        if stored is not None:
            state = "finished" if task_id in self._finished else "started"
        elif depth is None:
            state = "unknown"
        else:
            state = "queued" if depth else "picked_up"
        return TaskTimeoutError(task_id, timeout, state, queue, depth, stored)

    def _depth(self, queue: str | None) -> int | None:
        if queue is not None:
            return self._depths.get(queue)
        total = sum(self._depths.values())
        # Of a queue that could not be read nothing is known: it may be the one.
        return total if total or (self.queues and self._depths.keys() >= set(self.queues)) else None
