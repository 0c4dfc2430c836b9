"""
When to look at what is waited for, in case push missed it.

Young waits are looked at often, the others at intervals that grow to
:data:`LONGEST` while push delivers, and often again once it is seen to miss
results (an operator that stores without publishing, a lost subscription).
Without push everything is looked at often.
"""

import math
from collections.abc import Iterator, Sequence

from attrs import define, field

from ._documents import ResultDocument
from ._waiters import WaiterTable

#: Seconds between looks at young waits, and at all while push misses results.
SHORTEST = 0.1
#: Seconds between looks at the others while push delivers.
LONGEST = 2.0
#: A wait is young for this many seconds.
YOUNG = 1.2
#: After a miss push is distrusted for this many seconds.
DISTRUST = 10.0
#: Seconds after which a reader sees to its connection, whatever else there is to do.
LONGEST_PAUSE = 1.0
#: Looking takes at most one part in this many of the reader's time.
_SHARE = 4
_FEWEST_KEYS, _MOST_KEYS = 256, 4096
_MANY_BYTES = 8 * 1024 * 1024


@define
class SweepSchedule:
    """
    The times of sweeps; whoever does the I/O keeps to it.

    Times are of ``time.monotonic()``, in seconds.
    """

    _next_all: float = field(default=0.0, init=False)
    _next_young: float = field(default=0.0, init=False)
    _interval: float = field(default=SHORTEST, init=False)
    _not_before: float = field(default=0.0, init=False)
    _distrust_until: float = field(default=0.0, init=False)
    _blame_from: float = field(default=0.0, init=False)
    _found: dict[str, float] = field(factory=dict, init=False)
    #: What the server did not answer for, and how many of that to ask for at once.
    _unanswered: dict[str, None] = field(factory=dict, init=False)
    _few: int = field(default=1, init=False)
    #: How many keys to ask for in one command.
    chunk: int = field(default=_FEWEST_KEYS, init=False)

    def due(self, table: WaiterTable, now: float, *, pushing: bool) -> Sequence[str]:
        """Return the tasks to look at now, perhaps none, and plan the next time."""
        often = self._distrusts(now) or not pushing
        if not pushing:
            self._blame_from = math.inf
        if now < self._not_before:
            return ()
        if often and now >= self._next_young:
            self._interval = SHORTEST
        elif now < self._next_all:
            if now < self._next_young:
                return ()
            self._next_young = now + SHORTEST
            return table.younger_than(YOUNG, now)
        self._next_young = now + SHORTEST
        self._next_all = now + self._interval
        self._interval = min(LONGEST, self._interval * 2)
        task_ids = table.ids()
        if self._unanswered:
            waited_for = set(task_ids)
            self._unanswered = {i: None for i in self._unanswered if i in waited_for}
        return task_ids

    def pieces(self, task_ids: Sequence[str]) -> Iterator[Sequence[str]]:
        """
        Yield what to ask for in one command each; say of each :meth:`looked` or :meth:`unanswered`.

        What was not answered for comes last, and few at a time, so that results which
        are too much for a server or a network keep no others waiting.
        """
        wanted = set(task_ids) if self._unanswered else set()
        last = [task_id for task_id in self._unanswered if task_id in wanted]
        first = [i for i in task_ids if i not in self._unanswered] if last else task_ids
        position = 0
        while position < len(first):
            piece = first[position : position + self.chunk]
            position += len(piece)
            yield piece
        position = 0
        while position < len(last):
            piece = last[position : position + self._few]
            position += len(piece)
            yield piece

    def unanswered(self, asked: Sequence[str]) -> None:
        """Note that the connection broke, or nothing came, after this was asked for."""
        self._few = max(1, len(asked) // 4)
        for task_id in asked:
            self._unanswered.pop(task_id, None)
            self._unanswered[task_id] = None

    def next_due(self, now: float) -> float:
        """Return in how many seconds to look again while push delivers and no wait is young."""
        if self._found or now < self._distrust_until:
            return SHORTEST
        return max(0.0, self._next_all - now)

    def pause(self, table: WaiterTable, now: float, *, pushing: bool) -> float:
        """Return for how many seconds there is nothing to do but to listen."""
        young = not len(table) or table.any_younger_than(YOUNG, now)
        if not pushing or young:
            return SHORTEST
        # Never at once: what is due may not be allowed yet.
        return min(max(SHORTEST, self.next_due(now)), LONGEST_PAUSE)

    def looked(self, asked: Sequence[str], found: Sequence[ResultDocument], now: float) -> None:
        """
        Note what a sweep found: push has not brought it yet.

        Adapts the size of the commands: many keys while nothing is there, few
        while results are large.
        """
        if now >= self._blame_from:
            self._found.update((document.task_id, now) for document in found if document.ready)
        if not self._unanswered.keys().isdisjoint(asked):
            for task_id in asked:
                self._unanswered.pop(task_id, None)
            if len(asked) >= self._few:
                self._few *= 2
        if sum(document.size for document in found) > _MANY_BYTES:
            self.chunk = max(1, self.chunk // 4)
        elif len(asked) >= self.chunk:
            self.chunk = min(_MOST_KEYS, self.chunk * 2)

    def took(self, seconds: float) -> None:
        """Note how long a sweep took, so that sweeping leaves time for everything else."""
        self._not_before = self._next_young - SHORTEST + _SHARE * seconds

    def pushed(self, task_id: str) -> None:
        """Note that push brought a result, perhaps just after a sweep found it."""
        self._found.pop(task_id, None)

    def look_soon(self) -> None:
        """Look at young waits without delay: nothing else tells of their results."""
        self._next_young = 0.0

    def reset(self, now: float) -> None:
        """Look at everything without delay: push begins, and is not to blame for the past."""
        self._next_all = self._next_young = self._not_before = 0.0
        self._interval = SHORTEST
        self._blame_from = now + SHORTEST

    def _distrusts(self, now: float) -> bool:
        for task_id, found_at in list(self._found.items()):
            # Push had its time to bring it as well; it did not.
            if now - found_at >= SHORTEST:
                del self._found[task_id]
                self._distrust_until = now + DISTRUST
        return now < self._distrust_until
