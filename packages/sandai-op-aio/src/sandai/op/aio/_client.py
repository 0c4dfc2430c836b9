"""The client for asyncio."""

import asyncio
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Unpack

from celery import Celery

from sandai.op.models import (
    LegacyTaskResult,
    Priority,
    TaskTimeoutError,
    protocol,
)
from sandai.op.transport import (
    DEFAULT_TIMEOUT,
    UNOBSERVED,
    ClientArguments,
    ConfiguredClient,
    ResultDocument,
    TaskControls,
    TaskMessage,
    Transport,
    resolve,
    steps_of,
    telemetry_of,
)

from ._batches import BatchCalls
from ._handle import AsyncTaskHandle
from ._health import HealthCalls
from ._options import learn_options
from ._results import ResultReader
from ._shared_fetch import SharedFetch
from ._streams import StreamCalls
from ._submitter import Artifacts, Options, Submitter
from ._turns import call_on

logger = logging.getLogger("sandai.op.aio")

#: Seconds for which closing waits until what was given up is revoked.
_DRAINING = 1.0


class AsyncOperatorClient(BatchCalls, StreamCalls, HealthCalls, ConfiguredClient):
    """
    Hand tasks to one operator and wait for its answers, on any event loop.

    Clients with the same settings share connections; see the sharing table.
    Close it (:meth:`aclose`), or use ``async with``. Every call may raise
    :class:`ClientClosedError`, and on the way to the broker or the backend
    :class:`OperatorConnectionError` and :class:`ClientPoolTimeoutError`.

    ``timeout`` is in seconds; ``None`` or 0 for no limit and no deadline.
    Unset arguments come from the ``SANDAI_OPERATOR_*`` environment variables,
    then from the defaults. Raises :class:`ConfigurationError` and
    :class:`InvalidPriorityError`.
    """

    _closed = True  # until it is built, there is nothing to close

    def __init__(
        self,
        operator_name: str,
        operator_version: str,
        broker_url: str | None = None,
        result_backend: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        debug: bool = False,
        priority: str = "normal",
        cancel_key: str | None = None,
        auto_forget_result: bool | None = None,
        *,
        task_serializer: str | None = None,
        result_serializer: str | None = None,
        accept_content: Iterable[str] | None = None,
        broker_pool_limit: int | None = None,
        backend_pool_limit: int | None = None,
        backend_poll_concurrency: int | None = None,
        pool_acquire_timeout: float | None = None,
        io_timeout: float = 5.0,
        shared_transport_scope: str | None = None,
        broker_transport_options: Mapping[str, Any] | None = None,
        result_backend_transport_options: Mapping[str, Any] | None = None,
        submit_retries: int | None = None,
        cancel_on_timeout: bool | None = None,
        validate_options: bool | None = None,
        tracing: bool | None = None,
        metrics: bool | None = None,
    ) -> None:
        self.config = resolve(
            operator_name,
            operator_version,
            env=os.environ,
            broker_url=broker_url,
            result_backend=result_backend,
            timeout=timeout,
            debug=debug,
            priority=priority,
            cancel_key=cancel_key,
            auto_forget_result=auto_forget_result,
            task_serializer=task_serializer,
            result_serializer=result_serializer,
            accept_content=accept_content,
            broker_pool_limit=broker_pool_limit,
            backend_pool_limit=backend_pool_limit,
            backend_poll_concurrency=backend_poll_concurrency,
            pool_acquire_timeout=pool_acquire_timeout,
            io_timeout=io_timeout,
            shared_transport_scope=shared_transport_scope,
            broker_transport_options=broker_transport_options,
            result_backend_transport_options=result_backend_transport_options,
            submit_retries=submit_retries,
            cancel_on_timeout=cancel_on_timeout,
            validate_options=validate_options,
            tracing=tracing,
            metrics=metrics,
        )
        self._steps = steps_of(self.config, logger)
        self._telemetry = telemetry_of(self.config)
        self._transport = Transport(self.config)
        self._results = ResultReader(self.config, self._transport, self._steps)
        self._revoker = self._results.revoker
        self._closed = False
        self._submitter = Submitter(
            self.config, self._transport, self._results.app.child, self._steps, self._telemetry
        )
        self._description: SharedFetch[dict[str, Any]] = SharedFetch()
        if self._steps is not None:
            self._steps.configured(self.config)

    @property
    def celery_app(self) -> Celery:
        """
        A Celery app with this client's settings; never the current app.

        For what Celery sends (``control.revoke()``), in a thread: it blocks. Results
        are read by this client alone.
        """
        return self._results.app.get()

    # One task.

    async def async_call(
        self,
        input_artifacts: Artifacts,
        options: Options,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> AsyncTaskHandle:
        """
        Submit one task and return its handle.

        *timeout* (seconds) sets the task's deadline; 0 sets none. Raises
        :class:`InvalidTaskError` (with ``validate_options`` also for options that the
        operator's schema does not take), :class:`InvalidPriorityError` and
        :class:`OperatorConnectionError` (with the ``task_id`` where the task
        may have been queued).
        """
        self._results.check_open()
        controls = TaskControls(priority, timeout, cancel_key, persistent_output)
        if self._submitter.wants_schema:
            controls = await self._learn_options(controls, self._results.deadline(timeout))
        telemetry = self._telemetry
        with UNOBSERVED if telemetry is None else telemetry.submission(priority) as observed:
            message = self._submitter.task(input_artifacts, options, controls, observed)
            try:
                return AsyncTaskHandle(await self._submitter.send(message), self._results)
            except asyncio.CancelledError:
                self._revoker.give_up([message.task_id])
                raise

    async def sync(
        self,
        input_artifacts: Artifacts,
        options: Options,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> LegacyTaskResult:
        """
        Submit one task, wait, and return ``(artifacts, results)``.

        *timeout* (seconds) bounds the wait and sets the deadline. Raises what
        :meth:`async_call` does, and :class:`TaskTimeoutError` (whose ``state`` says what
        is known of the task: one more look, a quarter of a second at most),
        :class:`TaskExecutionError`, :class:`TaskDeadlineExceededError`,
        :class:`TaskCancelledError`, :class:`InvalidTaskStatusError`,
        :class:`InvalidResultFormatError`.
        """
        self._results.check_open()
        deadline = self._results.deadline(timeout)
        controls = TaskControls(priority, timeout, cancel_key, persistent_output)
        if self._submitter.wants_schema:
            controls = await self._learn_options(controls, deadline)
        telemetry = self._telemetry
        with UNOBSERVED if telemetry is None else telemetry.request("sync", priority) as observed:
            message = self._submitter.task(input_artifacts, options, controls, observed)
            task_id = message.task_id
            waiting = self._wait(task_id, timeout, deadline, queue=message.queue, submit=message)
            # While a hundred thousand wait, their messages are not kept.
            del message, input_artifacts, options, controls
            try:
                document = await waiting
            except (TaskTimeoutError, asyncio.CancelledError) as error:
                self._gave_up(task_id, error)
                raise
            return protocol.decode_reply(task_id, document.reply()).to_legacy_tuple()

    async def desc(self) -> dict[str, Any]:
        """
        What the operator says of itself: ``doc``, ``options_schema``, ``results_schema``.

        Asked for once per client and kept; raises as :meth:`sync` does.
        """
        self._results.check_open()
        fetch = partial(self._fetch_description, None, self._results.deadline(None))
        return await self._description.get(fetch)

    # Its life.

    async def aclose(self) -> None:
        """
        Release the client's leases; a second call does nothing.

        Waits outstanding, on whatever loop, and later calls get
        :class:`ClientClosedError`. The last client of a sharing key closes its
        connections. With ``cancel_on_timeout`` it waits, a second at most, until
        what was given up is revoked.
        """
        if not self._closed:
            self._closed = True
            try:
                await self._drain()
            finally:
                self._results.end_waits()
                await self._release()
            # A turn for the sockets of this loop.
            await asyncio.sleep(0)

    async def __aenter__(self) -> "AsyncOperatorClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not self._closed:
            self._closed = True
            # Neither locks or waits; handles that live on are told.
            self._results.end_waits()
            self._revoker.abandon()
            self._transport.abandon()
            # At last, since it raises where warnings are errors.
            if not sys.is_finalizing():
                warnings.warn(f"{self!r} was never closed", ResourceWarning, 2, source=self)

    async def _release(self) -> None:
        # Elsewhere: brokers that are not Redis say goodbye, which blocks. And it
        # happens even when whoever closes is cancelled.
        loop = asyncio.get_running_loop()
        released: asyncio.Future[Exception | None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if not released.done():
                released.set_result(error)

        self._transport.release_elsewhere(lambda error: call_on(loop, partial(tell, error)))
        error = await released
        if error is not None:
            raise error

    async def _wait(
        self,
        task_id: str,
        timeout: float | None,
        deadline: float,
        *,
        queue: str,
        submit: TaskMessage | None = None,
    ) -> ResultDocument:
        limit = self._results.wait_limit(timeout)
        if submit is not None and limit == 0:
            await self._submitter.send(submit)
            submit = None
        waiting = self._results.wait(
            task_id,
            limit,
            delete=self.config.auto_forget_result,
            deadline=deadline,
            submit=None if submit is None else partial(self._submitter.begin, submit),
            queue=queue,
        )
        del submit
        return await waiting

    def _gave_up(self, task_id: str, error: BaseException) -> None:
        # A timeout of 0 was a look, which gives nothing up.
        if not isinstance(error, TaskTimeoutError) or error.timeout:
            self._revoker.give_up([task_id])

    async def _drain(self) -> None:
        drained = self._revoker.drain()
        if drained is not None:
            await asyncio.wait([asyncio.wrap_future(drained)], timeout=_DRAINING)

    async def _learn_options(self, controls: TaskControls, deadline: float) -> TaskControls:
        limit = self._results.wait_limit(controls.timeout)
        if limit == 0:
            limit, deadline = self.config.timeout, self._results.deadline(None)
        return await learn_options(
            self._submitter, self._description, self._fetch_description, controls, limit, deadline
        )

    async def _fetch_description(self, limit: float | None, deadline: float) -> dict[str, Any]:
        telemetry = self._telemetry
        asked = Priority.HIGH
        with UNOBSERVED if telemetry is None else telemetry.request("desc", asked) as observed:
            message = self._submitter.description(observed)
            task_id = await self._submitter.send(message)
            try:
                reply = (await self._wait(task_id, limit, deadline, queue=message.queue)).reply()
            except (TaskTimeoutError, asyncio.CancelledError) as error:
                self._gave_up(task_id, error)
                raise
            return protocol.decode_description(task_id, reply).to_dict()


def create_async_client(
    operator_name: str, operator_version: str, **kwargs: Unpack[ClientArguments]
) -> AsyncOperatorClient:
    """Return an :class:`AsyncOperatorClient`; *kwargs* are its arguments."""
    return AsyncOperatorClient(operator_name, operator_version, **kwargs)
