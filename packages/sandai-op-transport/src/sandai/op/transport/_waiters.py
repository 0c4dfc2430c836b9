"""
The table of waiters: who waits for which task, and what must be told to Redis.

Colour-neutral: threads and loops add and discard, one reader settles. Under
its lock it only keeps account; waiters are told outside it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from attrs import define, field, frozen

from ._documents import ResultDocument


class Waiter(Protocol):
    """Told once for each task that it waits for, by the reader; must not block."""

    def deliver(self, document: ResultDocument) -> None: ...


@define(eq=False)
class _Entry:
    since: float
    #: waiter -> whether the result is to be deleted once read. One that holds a single
    #: waiter may be shared by entries, as those of a batch are, and is never changed.
    waiters: dict[Waiter, bool]

    def add(self, waiter: Waiter, delete: bool) -> None:
        if len(self.waiters) == 1:
            self.waiters = dict(self.waiters)
        self.waiters[waiter] = delete

    def discard(self, waiter: Waiter) -> bool:
        """Take *waiter* out; return whether it was there."""
        if waiter not in self.waiters:
            return False
        if len(self.waiters) == 1:
            self.waiters = {}
        else:
            del self.waiters[waiter]
        return True


@frozen
class Changes:
    """
    What to tell Redis, in this order: unsubscribe, delete, subscribe, look.

    A task can stand in ``leave`` and in ``join`` at once: it was settled and is
    waited for again, so it must be looked at again.
    """

    leave: list[str]
    delete: list[str]
    join: list[str]

    def __bool__(self) -> bool:
        return bool(self.leave or self.delete or self.join)


@define
class WaiterTable:
    """Task id -> its waiters, in the order in which the waits began."""

    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _entries: OrderedDict[str, _Entry] = field(factory=OrderedDict, init=False)
    _joining: dict[str, None] = field(factory=dict, init=False)
    _leaving: dict[str, None] = field(factory=dict, init=False)
    _deleting: dict[str, None] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, task_ids: Iterable[str], waiter: Waiter, *, delete: bool) -> None:
        """Wait for tasks; *delete* has each result deleted once it is read."""
        with self._lock:
            now = time.monotonic()
            alone = {waiter: delete}
            for task_id in task_ids:
                entry = self._entries.get(task_id)
                if entry is None:
                    self._joining[task_id] = None
                    self._entries[task_id] = _Entry(now, alone)
                else:
                    # A new wait is a young one, whoever waits already.
                    self._entries.move_to_end(task_id)
                    entry.since = now
                    entry.add(waiter, delete)

    def discard(self, task_ids: Iterable[str], waiter: Waiter) -> set[str]:
        """
        Stop waiting; return the tasks that were still waited for.

        The others were settled: their document is on its way to the waiter.
        """
        given_up = set()
        with self._lock:
            for task_id in task_ids:
                entry = self._entries.get(task_id)
                if entry is None or not entry.discard(waiter):
                    continue
                given_up.add(task_id)
                if not entry.waiters:
                    del self._entries[task_id]
                    self._left(task_id)
        return given_up

    def settle(self, document: ResultDocument) -> list[Waiter]:
        """Take the waiters of a document that ends their wait; tell each of them."""
        if not document.ready:
            return []
        with self._lock:
            entry = self._entries.pop(document.task_id, None)
            if entry is None:
                return []
            self._left(document.task_id)
            if any(entry.waiters.values()):
                self._deleting[document.task_id] = None
            return list(entry.waiters)

    def clear(self) -> set[Waiter]:
        """Forget every wait; return who waited."""
        with self._lock:
            waiters = {waiter for entry in self._entries.values() for waiter in entry.waiters}
            self._entries.clear()
            self._joining, self._leaving, self._deleting = {}, {}, {}
            return waiters

    def delete(self, task_ids: Iterable[str]) -> None:
        """Have results deleted with the next changes."""
        with self._lock:
            self._deleting.update(dict.fromkeys(task_ids))

    def delete_again(self, task_ids: Iterable[str]) -> None:
        """Have results deleted, perhaps for the second time, that nobody waits for again."""
        with self._lock:
            again = (task_id for task_id in task_ids if task_id not in self._entries)
            self._deleting.update(dict.fromkeys(again))

    def changes(self) -> Changes:
        """Take what has changed since the last call."""
        with self._lock:
            changes = Changes(list(self._leaving), list(self._deleting), list(self._joining))
            self._leaving, self._deleting, self._joining = {}, {}, {}
            return changes

    @property
    def changed(self) -> bool:
        """Whether :meth:`changes` would return any."""
        return bool(self._joining or self._leaving or self._deleting)

    def rejoin_all(self) -> None:
        """After a reconnect: subscribe to everything again."""
        with self._lock:
            self._leaving.clear()
            self._joining = dict.fromkeys(self._entries)

    def ids(self) -> list[str]:
        """Return every task waited for."""
        with self._lock:
            return list(self._entries)

    def younger_than(self, age: float, now: float) -> list[str]:
        """Return the tasks whose latest wait began less than *age* seconds ago."""
        with self._lock:
            young = []
            for task_id, entry in reversed(self._entries.items()):
                if now - entry.since > age:
                    break
                young.append(task_id)
            return young

    def any_younger_than(self, age: float, now: float) -> bool:
        """Return whether :meth:`younger_than` would return any; at no cost."""
        with self._lock:
            latest = next(reversed(self._entries.values()), None)
            return latest is not None and now - latest.since <= age

    def _left(self, task_id: str) -> None:
        # Never subscribed yet: then there is nothing to leave.
        if task_id in self._joining:
            del self._joining[task_id]
        else:
            self._leaving[task_id] = None
