"""Waiting for results in a thread: one, many, or a single look."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from celery import Celery

from sandai.op.models import (
    OperatorConnectionError,
    OperatorError,
    TaskTimeoutError,
    protocol,
)
from sandai.op.transport import (
    Config,
    Evidence,
    ResultDocument,
    Steps,
    TaskBuilder,
    Transport,
    TransportError,
    client_app,
)

from ._callbacks import Callbacks
from ._explainer import Explainer
from ._handle import BoundedBackend, OperatorAsyncResult
from ._hub import ResultHub
from ._looks import ResultLooks
from ._mailbox import Mailbox, deadline_after
from ._shared_fetch import SharedFetch
from ._submitter import Submission


class _AllThreads:
    """Stands for the threads of a process, which share one hub per backend."""


_ALL_THREADS = _AllThreads()


class ResultReader(ResultLooks):
    """One client's waits and looks, on the hub that it shares."""

    def __init__(self, config: Config, transport: Transport, steps: Steps | None = None) -> None:
        super().__init__(config, transport, steps)
        self._builder = TaskBuilder(config)
        self._app: SharedFetch[Celery] = SharedFetch()
        # No lock: adding, discarding and copying are atomic, and a lock might
        # be held for good in a forked child.
        self._mailboxes: set[Mailbox] = set()
        self._callbacks = Callbacks()
        self._explainer = Explainer(config, transport)

    @property
    def app(self) -> Celery:
        """A Celery app whose result backend is this reader; made when first asked for."""
        return self._app.get(self._make_app)

    def _make_app(self) -> Celery:
        return client_app(
            self._config,
            permit=self._permit,
            make_backend=lambda app: BoundedBackend(app, self),
            result_cls=OperatorAsyncResult,
        )

    def _permit(self) -> AbstractContextManager[None]:
        self.check_open()
        return self._transport.broker.permit(self._config.pool_acquire_timeout)

    def handle(self, task_id: object) -> OperatorAsyncResult:
        """Return a handle on a task; raises :class:`InvalidTaskError` for what is no id."""
        known = protocol.check_task_id(task_id)
        return OperatorAsyncResult(known, self.app.backend, None, self.app)

    def wait_limit(self, timeout: float | None) -> float | None:
        """Return a call's limit in seconds: ``None`` for good, 0 for one look."""
        return self._builder.wait_limit(timeout)

    def deadline(self, timeout: float | None) -> float:
        """Return the ``time.monotonic()`` at which a call that begins now is over."""
        return deadline_after(self.wait_limit(timeout))

    @property
    def failure(self) -> OperatorError | None:
        """Why results cannot be read at the moment; ``None`` while they can."""
        return self.hub.failure

    @property
    def hub(self) -> ResultHub:
        """The hub of this process's backend."""
        backend = self._transport.backend
        try:
            hub = backend.reader(_ALL_THREADS, lambda: ResultHub(backend))
        except TransportError:
            self.check_open()
            raise
        assert isinstance(hub, ResultHub)
        return hub

    def wait(
        self,
        task_id: str,
        timeout: float | None,
        *,
        delete: bool,
        deadline: float | None = None,
        submit: Callable[[Callable[[], object]], Submission] | None = None,
        queue: str | None = None,
    ) -> ResultDocument:
        """
        Return one task's document once it is ready.

        *timeout* in seconds; 0 looks once, ``None`` waits for good. *submit* begins to
        hand the task in, given what wakes this caller: the wait has begun by then, so
        that both cost one trip. *queue* is the task's, where that is known. Raises
        :class:`TaskTimeoutError`, :class:`ClientClosedError`, and on a single
        look what :meth:`look` raises.
        """
        if timeout == 0:
            for document in self.look_once([task_id], delete=delete):
                return document
            raise self.too_late(Evidence(), task_id, timeout)
        own = (protocol.check_task_id(task_id),)
        deadline = deadline_after(timeout) if deadline is None else deadline
        with self.mailbox() as mailbox:
            hub = self.hub_to_wait_on()
            submission = None
            try:
                hub.watch(own, mailbox, delete=delete)
                if self.steps is not None:
                    self.steps.watching(own, timeout)
                if submit is not None:
                    submission = submit(mailbox.poke)
                found = _result(mailbox, deadline, submission)
            except OperatorConnectionError:
                # Nobody acknowledged the task. A result that has been taken for us says
                # that it was queued all the same, and is told to nobody else.
                if hub.unwatch(own, mailbox):
                    raise
                found = _taken(mailbox)
            except BaseException:
                if submission is not None:
                    submission.withdraw()
                hub.unwatch(own, mailbox)
                raise
            if found is None and not hub.unwatch(own, mailbox):
                found = _taken(mailbox)  # see wait_many()
        if found is None:
            raise self.late(task_id, timeout, queue)
        if self.steps is not None:
            self.steps.arrived(found, deleted=delete)
        return found

    def late(
        self, task_id: str, timeout: float | None, queue: str | None = None
    ) -> TaskTimeoutError:
        """Look, and return the error of a wait that ran out."""
        return self.too_late(self.evidence([task_id]), task_id, timeout, queue)

    def evidence(self, task_ids: Sequence[str]) -> Evidence:
        """
        Return what a last look shows of tasks, a quarter of a second at most.

        Nothing while results cannot be read: that is what is to be told then.
        """
        if self._closed or self.failure is not None:
            return Evidence()
        return self._explainer.look(task_ids)

    def too_late(
        self, evidence: Evidence, task_id: str, timeout: float | None, queue: str | None = None
    ) -> TaskTimeoutError:
        """Return the error of a wait that ran out; its cause is the backend's failure."""
        error = evidence.error(task_id, timeout, queue)
        if self.steps is not None:
            self.steps.timed_out(error)
        error.__cause__ = self.failure
        return error

    def wait_many(
        self,
        task_ids: Sequence[str],
        timeout: float | None,
        *,
        delete: bool,
        deadline: float | None = None,
    ) -> Iterator[ResultDocument]:
        """
        Yield ready documents as they come, until all have or *timeout* is over.

        A *deadline* (``time.monotonic()``) is that of a call that began before.
        """
        if timeout == 0:
            yield from self.look_once(task_ids, delete=delete)
            return
        if not task_ids:
            return
        for task_id in task_ids:
            protocol.check_task_id(task_id)
        deadline = deadline_after(timeout) if deadline is None else deadline
        hub = self.hub_to_wait_on()
        open_ids = set(task_ids)
        with self.mailbox() as mailbox:
            try:
                hub.watch(open_ids, mailbox, delete=delete)
                if self.steps is not None:
                    self.steps.watching(list(open_ids), timeout)
                while open_ids:
                    document = mailbox.get(deadline)
                    if document is None:
                        break
                    open_ids.discard(document.task_id)
                    if self.steps is not None:
                        self.steps.arrived(document, deleted=delete)
                    yield document
            except GeneratorExit:
                # Dropped, perhaps in a finalizer, inside any lock: the hub's thread sees to it.
                gone, open_ids = list(open_ids), set()
                if gone:
                    hub.unwatch_later(gone, mailbox)
                raise
            finally:
                given_up = hub.unwatch(open_ids, mailbox) if open_ids else set()
            # What was settled at the last moment has been taken for us and is on
            # its way: nobody else will be told of it, however long that takes.
            late = open_ids - given_up
            while late and (document := mailbox.get(math.inf)) is not None:
                late.discard(document.task_id)
                if self.steps is not None:
                    self.steps.arrived(document, deleted=delete)
                yield document

    def hub_to_wait_on(self) -> ResultHub:
        """Return the hub; raises :class:`RuntimeError` in its own thread."""
        hub = self.hub
        if hub.is_current_thread:
            raise RuntimeError("a callback of then() may not wait: it runs where results are read")
        return hub

    def watch(
        self,
        task_id: str,
        callback: Callable[[ResultDocument], None],
        *,
        keeper: object | None = None,
    ) -> None:
        """
        Call *callback*, from the hub's thread, once the task is ready.

        With a *keeper* only as long as that object lives; it is held weakly.
        """
        waiter = self._callbacks.add(self.hub, protocol.check_task_id(task_id), callback, keeper)
        try:
            self.check_open()
            waiter.hub.watch([task_id], waiter, delete=False)
            # After adding: close() either finds the callback or is seen here.
            self.check_open()
        except BaseException:
            self._callbacks.drop(waiter)
            raise

    def close(self) -> None:
        """End every wait of this client; callbacks are not called any more."""
        self.end_waits()
        self._callbacks.drop_all()

    def end_waits(self) -> None:
        """End waits with :class:`ClientClosedError`; takes no lock and does no I/O."""
        self._closed = True
        for mailbox in list(self._mailboxes):
            mailbox.fail(self._closed_error())

    @contextmanager
    def mailbox(self) -> Iterator[Mailbox]:
        """Give a mailbox, whose waits end when this client is closed."""
        mailbox = Mailbox()
        self._mailboxes.add(mailbox)
        try:
            # After adding: close() either finds the mailbox or is seen here.
            self.check_open()
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)


def _result(
    mailbox: Mailbox, deadline: float, submission: Submission | None
) -> ResultDocument | None:
    """Return the one document that is waited for; ``None`` when it is not there in time."""
    if submission is None:
        return mailbox.get(deadline)
    while True:
        # Whatever the caller's timeout, it is told what became of the submission. Said that
        # it is urgent before looking: what comes after that wakes us.
        now = time.monotonic()
        submission.urgent = now >= deadline
        pause = submission.pursue()
        if submission.urgent and submission.settled:
            return None
        found = mailbox.get(now + pause if submission.urgent else min(deadline, now + pause))
        if found is not None:
            submission.succeed()
            return found


def _taken(mailbox: Mailbox) -> ResultDocument:
    """Return the one document that is on its way, whatever else wakes us before."""
    while (found := mailbox.get(math.inf)) is None:
        pass  # what the submission had to say
    return found
