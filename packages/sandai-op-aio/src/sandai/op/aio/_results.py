"""Waiting for results on a loop: one, many, or a single look."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TypeVar

from sandai.op.models import (
    ClientClosedError,
    ClientPoolTimeoutError,
    OperatorConnectionError,
    OperatorError,
    TaskTimeoutError,
    protocol,
)
from sandai.op.transport import (
    Backend,
    Config,
    Evidence,
    ResultDocument,
    Revoker,
    Steps,
    TaskBuilder,
    Transport,
    TransportError,
    pending,
)

from ._celery import ClientApp
from ._explainer import Explainer
from ._hub import LoopHub, hub_of
from ._mailbox import Mailbox, deadline_after, fail_all
from ._turns import Breath, PerLoop

logger = logging.getLogger("sandai.op.aio")

R = TypeVar("R")
#: Begins to hand a task in, given who is told what became of it and the running loop; returns
#: what takes it back.
Submit = Callable[
    [Callable[[OperatorError | None], object], asyncio.AbstractEventLoop],
    Awaitable[Callable[[], None]],
]

_LOOK_KEYS = 1000
#: Seconds that results already found wait for their deletion.
_DELETING = 0.5


class ResultReader:
    """One client's waits and looks, on the hubs of the loops that it is used on."""

    def __init__(self, config: Config, transport: Transport, steps: Steps | None = None) -> None:
        self._config = config
        self.steps = steps
        self._transport = transport
        self.app = ClientApp(config, transport, self.check_open)
        self.revoker = Revoker(
            self.app.get, given_up=config.cancel_on_timeout, logger=logger, steps=steps
        )
        self._builder = TaskBuilder(config)
        self._hubs: PerLoop[Backend, LoopHub] = PerLoop(hub_of)
        # No lock: adding, discarding and copying are atomic, and several loops do it.
        self._mailboxes: set[Mailbox] = set()
        self._explainer = Explainer(config, transport)
        self._closed = False

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
    def hub(self) -> LoopHub:
        """The running loop's hub of this process's backend."""
        return self._hub_on(asyncio.get_running_loop())

    def _hub_on(self, loop: asyncio.AbstractEventLoop) -> LoopHub:
        try:
            return self._hubs.of(self._transport.backend, loop)
        except TransportError:
            self.check_open()
            raise

    async def wait(
        self,
        task_id: str,
        timeout: float | None,
        *,
        delete: bool,
        deadline: float | None = None,
        submit: Submit | None = None,
        queue: str | None = None,
    ) -> ResultDocument:
        """
        Return one task's document once it is ready.

        *timeout* in seconds; 0 looks once, ``None`` waits for good. *submit* begins to
        hand the task in: the wait has begun by then, so that both cost one trip. *queue* is
        the task's, where that is known. Raises
        :class:`TaskTimeoutError`, :class:`ClientClosedError`, and on a single
        look what :meth:`look` raises.
        """
        if timeout == 0:
            found = await self.look_once([task_id], delete=delete)
        else:
            # Not by wait_many(): a hundred thousand may wait here, and each frame counts.
            protocol.check_task_id(task_id)
            deadline = deadline_after(timeout) if deadline is None else deadline
            loop = asyncio.get_running_loop()
            mailbox = Mailbox(loop)
            self.open_mailbox(mailbox)
            try:
                hub, own, take_back = self._hub_on(loop), (task_id,), None
                hub.watch(own, mailbox, delete=delete)
                if self.steps is not None:
                    self.steps.watching(own, timeout)
                try:
                    if submit is not None:
                        mailbox.unsettled = True
                        take_back = await submit(mailbox.settled, loop)
                        submit = None  # which holds the message
                    found = await mailbox.get(deadline)
                except OperatorConnectionError:
                    # Nobody acknowledged the task. A result that has been taken for us says
                    # that it was queued all the same, and is told to nobody else.
                    if hub.unwatch(own, mailbox):
                        raise
                    mailbox.queued_after_all()
                    found = []
                except BaseException:
                    if take_back is not None:
                        take_back()
                    hub.unwatch(own, mailbox)
                    raise
                if not found and not hub.unwatch(own, mailbox):
                    found = await mailbox.get(math.inf)  # see wait_many()
            finally:
                self._mailboxes.discard(mailbox)
        if found:
            if self.steps is not None and timeout != 0:
                self.steps.arrived(found[0], deleted=delete)
            return found[0]
        raise self.too_late(
            await self.evidence([task_id]) if timeout != 0 else Evidence(), task_id, timeout, queue
        )

    def too_late(
        self, evidence: Evidence, task_id: str, timeout: float | None, queue: str | None = None
    ) -> TaskTimeoutError:
        """Return the error of a wait that ran out; its cause is the backend's failure."""
        # Made here: a frame that raises what it holds is kept, until the collector comes.
        error = evidence.error(task_id, timeout, queue)
        if self.steps is not None:
            self.steps.timed_out(error)
        error.__cause__ = self.failure
        return error

    async def evidence(self, task_ids: Sequence[str]) -> Evidence:
        """
        Return what a last look shows of tasks, a quarter of a second at most.

        Nothing while results cannot be read: that is what is to be told then.
        """
        if self._closed or self.failure is not None:
            return Evidence()
        return await self._explainer.look(task_ids)

    async def wait_many(
        self,
        task_ids: Sequence[str],
        timeout: float | None,
        accept: Callable[[ResultDocument], None],
        *,
        delete: bool,
        deadline: float,
    ) -> None:
        """
        Give *accept* ready documents as they come, until all have or *timeout* is over.

        The *deadline* (``time.monotonic()``) is that of the call, which began before.
        """
        breath = Breath()
        if timeout == 0:
            for document in await self.look_once(task_ids, delete=delete):
                accept(document)
                if breath.due:
                    await breath()
            return
        if not task_ids:
            return
        for task_id in task_ids:
            protocol.check_task_id(task_id)
        open_ids = dict.fromkeys(task_ids)
        mailbox = Mailbox(asyncio.get_running_loop())
        self.open_mailbox(mailbox)
        try:
            hub = self.hub
            try:
                for chunk in chunks(list(open_ids)):
                    hub.watch(chunk, mailbox, delete=delete)
                    if self.steps is not None:
                        self.steps.watching(chunk, timeout)
                    await breath()
                while open_ids and (found := await mailbox.get(deadline)):
                    for document in found:
                        open_ids.pop(document.task_id, None)
                        if self.steps is not None:
                            self.steps.arrived(document, deleted=delete)
                        accept(document)
                        if breath.due:
                            await breath()
            finally:
                given_up = hub.unwatch(open_ids, mailbox) if open_ids else set()
            # What was settled at the last moment has been taken for us and is on
            # its way: nobody else will be told of it, however long that takes.
            late = open_ids.keys() - given_up
            while late:
                for document in await mailbox.get(math.inf):
                    late.discard(document.task_id)
                    if self.steps is not None:
                        self.steps.arrived(document, deleted=delete)
                    accept(document)
        finally:
            self._mailboxes.discard(mailbox)

    async def look(self, task_id: str) -> ResultDocument:
        """
        Return one task's document as it is now.

        Raises :class:`OperatorConnectionError`, :class:`ClientPoolTimeoutError`
        and :class:`ClientClosedError`.
        """
        found = await self.look_many([task_id])
        return found[0] if found else pending(task_id)

    async def look_many(self, task_ids: Sequence[str]) -> list[ResultDocument]:
        """Return what is stored now; raises as :meth:`look` does."""
        self.check_open()
        for task_id in task_ids:
            protocol.check_task_id(task_id)
        looks, patience = self.hub.looks, self._config.pool_acquire_timeout
        documents: list[ResultDocument] = []
        for chunk in chunks(task_ids):
            documents += await self._guarded(looks.look(chunk, patience=patience))
        if self.steps is not None:
            self.steps.looked(documents)
        return documents

    async def forget(self, task_ids: Sequence[str]) -> None:
        """Delete results; raises as :meth:`look` does."""
        self.check_open()
        for task_id in task_ids:
            protocol.check_task_id(task_id)
        looks, patience = self.hub.looks, self._config.pool_acquire_timeout
        for chunk in chunks(task_ids):
            await self._guarded(looks.delete(chunk, patience=patience))
        if self.steps is not None:
            self.steps.deleted(task_ids)

    async def revoke(self, task_ids: Iterable[object], *, terminate: bool, signal: str) -> None:
        """
        Revoke tasks, from a thread of ours: Celery blocks.

        Raises :class:`InvalidTaskError`, :class:`ConfigurationError`,
        :class:`OperatorConnectionError`, :class:`ClientPoolTimeoutError` and
        :class:`ClientClosedError`.
        """
        self.check_open()
        posted = self.revoker.post(task_ids, terminate=terminate, signal=signal)
        if posted is None:
            raise self._closed_error()
        await asyncio.wrap_future(posted)

    def check_open(self) -> None:
        """Raise :class:`ClientClosedError` after :meth:`end_waits`."""
        if self._closed:
            raise self._closed_error()

    def end_waits(self) -> None:
        """End this client's waits, on all loops, with :class:`ClientClosedError`."""
        self._closed = True
        fail_all(list(self._mailboxes), self._closed_error)

    def open_mailbox(self, mailbox: Mailbox) -> None:
        """Have a mailbox told when this client is closed, until :meth:`close_mailbox`."""
        self._mailboxes.add(mailbox)
        # After adding: end_waits() either finds the mailbox or is seen here.
        if self._closed:
            self._mailboxes.discard(mailbox)
            raise self._closed_error()

    def close_mailbox(self, mailbox: Mailbox) -> None:
        """Have it told no more."""
        self._mailboxes.discard(mailbox)

    async def look_once(self, task_ids: Sequence[str], *, delete: bool) -> list[ResultDocument]:
        """Return what is ready now, and have it deleted; raises as :meth:`look` does."""
        ready = [document for document in await self.look_many(task_ids) if document.ready]
        if delete and ready:
            # A deletion that fails must not cost the results: they expire.
            with suppress(OperatorError, TimeoutError):
                async with asyncio.timeout(_DELETING):
                    await self.forget([document.task_id for document in ready])
        return ready

    async def _guarded(self, call: Awaitable[R]) -> R:
        try:
            return await call
        except ClientPoolTimeoutError:
            self.check_open()
            raise
        except TransportError as error:
            self.check_open()  # closing the client broke it off
            raise error.for_operator(
                self._config.operator_name, self._config.operator_version
            ) from error

    def _closed_error(self) -> ClientClosedError:
        return ClientClosedError(self._config.operator_name, self._config.operator_version)


def chunks(task_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """Yield as many ids at a time as go into one command."""
    for start in range(0, len(task_ids), _LOOK_KEYS):
        yield task_ids[start : start + _LOOK_KEYS]
