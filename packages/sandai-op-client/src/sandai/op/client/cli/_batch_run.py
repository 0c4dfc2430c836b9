"""A batch under way: lines in, tasks out, results written, and only then deleted."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

from attrs import define, field, frozen

from sandai.op.client import (
    BatchTaskResult,
    ClientClosedError,
    ClientPoolTimeoutError,
    OperatorClient,
    OperatorConnectionError,
    OperatorError,
    SubmittedTask,
    TaskTimeoutError,
)
from sandai.op.transport import TAKEN_ONCE_SECONDS

from ._errors import described
from ._journal import Journal
from ._ledger import Sent, result_line
from ._source import Wanted, parse

#: Results that are deleted together, and seconds until fewer are.
_TOGETHER, _EVERY = 2000, 1.0
#: Of results that cannot be deleted, those that are remembered: the others expire.
_MOST_KEPT = 10_000
#: Seconds before what failed when no lines were left is sent again.
_PAUSE = 0.25
#: Seconds before the servers forget which tasks they have taken, in which we do not rely on it.
_MARGIN = 300
#: Seconds that a task which went out in an earlier run is waited for in any case.
_GRACE = 10.0
_LOST = (
    "the answer went to the process that was killed, and this result backend keeps it for "
    "nobody else; --retry-failed sends the task again"
)
Task = tuple[Any, Any, str]


class Stopped(Exception):
    """Broker or backend stayed away: the batch is to be resumed. Its cause says why."""


@frozen
class Out:
    """A line whose task is out."""

    wanted: Wanted
    attempt: int
    task_id: str
    sent: float


@frozen
class Plan:
    """How a batch is to be done. Seconds for times."""

    max_in_flight: int = 256
    retry_failed: bool = False
    #: How long a broker that stays away is waited for.
    patience: float = 60.0
    #: Whether tasks that an earlier run sent may be sent again under their ids: the broker
    #: queues them once.
    taken_once: bool = True
    #: Whether the backend keeps results for a later run.
    kept: bool = True
    #: Whether results are deleted there once they are recorded.
    forget: bool = True


@define
class BatchRun:
    """
    Do the lines of an input that have no result yet.

    *told* is called after each result, and with an error while the broker is waited for.
    """

    _client: OperatorClient
    _journal: Journal
    _plan: Plan
    _told: Callable[[Exception | None], object]
    #: Tasks that certainly have not been queued, or may be submitted again.
    _again: deque[Out] = field(factory=deque, init=False)
    #: Tasks that may be queued, and may not be submitted again.
    _in_doubt: list[Out] = field(factory=list, init=False)
    #: Those that were in doubt once: what fails later may have been queued before.
    _doubtful: set[str] = field(factory=set, init=False)
    _forgettable: list[str] = field(factory=list, init=False)
    _enough: int = field(factory=lambda: _TOGETHER, init=False)
    _forgot_at: float = field(factory=time.monotonic, init=False)
    _failing_since: float | None = field(default=None, init=False)

    def run(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """
        Do them; raises :class:`Stopped`, and :class:`ClientClosedError`.

        After any exception the batch can be resumed.
        """
        if self._plan.forget:
            self._forgettable += self._journal.account.unforgotten
        self._stream(lines)
        while self._again:  # what failed when the last lines were out
            time.sleep(_PAUSE)
            self._stream(())
        self._attach()
        self._forget()

    def _stream(self, lines: Iterable[tuple[int, bytes]]) -> None:
        out: dict[int, Out] = {}  # by the number that a task has in the stream

        def tasks() -> Iterator[Task]:
            for number, each in enumerate(self._next(lines)):
                out[number] = each
                yield each.wanted.artifacts, each.wanted.options, each.task_id

        results = self._client.map(tasks(), max_in_flight=self._plan.max_in_flight)
        with closing(results):
            for result in results:
                self._settle(out.pop(result.index), result)

    def _next(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[Out]:
        account = self._journal.account
        for number, line in lines:
            yield from self._repeated()
            if not account.wants(number, retry_failed=self._plan.retry_failed):
                continue
            wanted = parse(number, line)
            if wanted.error is not None:
                self._record(wanted, account.attempts(number) + 1, None, error=wanted.error)
            elif (sent := account.pending.get(number)) is None:
                sent = self._journal.send(number, str(uuid4()))
                self._forget_when_due()
                yield Out(wanted, sent.attempt, sent.task_id, sent.time)
            else:
                yield from self._resumed(wanted, sent)
        yield from self._repeated()

    def _repeated(self) -> Iterator[Out]:
        while self._again:
            yield self._again.popleft()

    def _resumed(self, wanted: Wanted, sent: Sent) -> Iterator[Out]:
        out = Out(wanted, sent.attempt, sent.task_id, sent.time)
        if self._is_taken_once(out):
            yield out
        elif self._plan.kept:
            self._in_doubt.append(out)
        else:
            self._record(wanted, sent.attempt, sent.task_id, error=OperatorError(_LOST))

    def _settle(self, out: Out, result: BatchTaskResult) -> None:
        error = result.error
        if isinstance(error, ClientClosedError):
            raise error
        if not result.submitted and isinstance(
            error, OperatorConnectionError | ClientPoolTimeoutError
        ):
            self._failed(out, result, error)
            return
        self._failing_since = None
        self._doubtful.discard(out.task_id)
        self._record(out.wanted, out.attempt, out.task_id, result.artifacts, result.results, error)
        if self._plan.forget and result.submitted and not isinstance(error, TaskTimeoutError):
            self._forgettable.append(out.task_id)
        if len(self._forgettable) >= self._enough:
            self._forget()
        else:
            self._forget_when_due()

    def _failed(self, out: Out, result: BatchTaskResult, error: OperatorError) -> None:
        """Keep a task that could not be submitted, for when the broker is back."""
        if result.task_id is not None:
            self._doubtful.add(out.task_id)
        if out.task_id not in self._doubtful or self._is_taken_once(out):
            self._again.append(out)
        else:
            self._in_doubt.append(out)
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > self._plan.patience:
            raise Stopped from error
        self._told(error)

    def _is_taken_once(self, out: Out) -> bool:
        """Return whether the broker still knows whether it has taken this task."""
        age = time.time() - out.sent
        return self._plan.taken_once and 0 <= age < TAKEN_ONCE_SECONDS - _MARGIN

    def _attach(self) -> None:
        """Wait for the tasks that are in doubt, for as long as they may still be worked on."""
        waiting, self._in_doubt = dict(enumerate(self._in_doubt)), []
        if not waiting:
            return
        limit = self._client.timeout
        if limit is not None:
            latest = max(out.sent for out in waiting.values())
            limit = max(_GRACE, latest + limit - time.time())
        submissions = [
            SubmittedTask(number, self._client.attach(out.task_id))
            for number, out in waiting.items()
        ]
        for result in self._client.as_completed(submissions, timeout=limit):
            self._settle(waiting[result.index], result)

    def _record(
        self,
        wanted: Wanted,
        attempt: int,
        task_id: str | None,
        artifacts: list[dict[str, Any]] | None = None,
        results: dict[str, Any] | None = None,
        error: Exception | None = None,
    ) -> None:
        rest: dict[str, Any] = {} if wanted.key is None else {"id": wanted.key}
        if error is None:
            rest |= {"artifacts": artifacts or [], "results": results or {}}
        else:
            rest["error"] = described(error)
        success = error is None
        text = result_line(wanted.line, attempt, task_id, success, rest)
        self._journal.record(wanted.line, attempt, success, text)
        self._told(None)

    def _forget_when_due(self) -> None:
        if time.monotonic() - self._forgot_at > _EVERY:
            self._forget()

    def _forget(self) -> None:
        """Delete results that are on the disk by now; what fails is tried again later."""
        self._forgot_at = time.monotonic()
        self._journal.sync()
        if not self._forgettable:
            return
        try:
            self._client.forget(self._forgettable)
        except (OperatorConnectionError, ClientPoolTimeoutError):
            del self._forgettable[:-_MOST_KEPT]
            self._enough = len(self._forgettable) + _TOGETHER
            return
        self._forgettable.clear()
        self._enough = _TOGETHER
        self._journal.forgot()
