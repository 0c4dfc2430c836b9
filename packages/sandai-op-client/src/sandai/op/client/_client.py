"""The client for threads."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import wait
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
    Revoker,
    TaskControls,
    TaskMessage,
    Transport,
    resolve,
    steps_of,
    telemetry_of,
)

from ._batches import BatchCalls
from ._handle import OperatorAsyncResult
from ._health import HealthCalls
from ._options import learn_options
from ._results import ResultReader
from ._shared_fetch import SharedFetch
from ._streams import StreamCalls
from ._submitter import Artifacts, Options, Submitter

logger = logging.getLogger("sandai.op.client")

#: Seconds for which closing waits until what was given up is revoked.
_DRAINING = 1.0


class OperatorClient(BatchCalls, StreamCalls, HealthCalls, ConfiguredClient):
    """
    Hand tasks to one operator and wait for its answers, from any thread.

    Clients with the same settings share connections; see the sharing table.
    Close it, or use it as a context manager. Every call may raise
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
        self._results = results = ResultReader(self.config, self._transport, self._steps)
        self._revoker = Revoker(
            lambda: results.app,
            given_up=self.config.cancel_on_timeout,
            logger=logger,
            steps=self._steps,
        )
        self._closed = False
        self._submitter = Submitter(
            self.config, self._transport, self._results.handle, self._steps, self._telemetry
        )
        self._description: SharedFetch[dict[str, Any]] = SharedFetch()
        if self._steps is not None:
            self._steps.configured(self.config)

    @property
    def celery_app(self) -> Celery:
        """A Celery app with this client's settings; never the current app."""
        return self._results.app

    # One task.

    def async_call(
        self,
        input_artifacts: Artifacts,
        options: Options,
        priority: str | None = None,
        timeout: float | None = None,
        cancel_key: str | None = None,
        persistent_output: bool = False,
    ) -> OperatorAsyncResult:
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
            controls = self._learn_options(controls, self._results.deadline(timeout))
        telemetry = self._telemetry
        with UNOBSERVED if telemetry is None else telemetry.submission(priority) as observed:
            message = self._submitter.task(input_artifacts, options, controls, observed)
            return self._results.handle(self._submitter.send(message))

    def sync(
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
            controls = self._learn_options(controls, deadline)
        telemetry = self._telemetry
        with UNOBSERVED if telemetry is None else telemetry.request("sync", priority) as observed:
            message = self._submitter.task(input_artifacts, options, controls, observed)
            try:
                document = self._wait(
                    message.task_id, timeout, deadline, queue=message.queue, submit=message
                )
            except TaskTimeoutError as error:
                self._gave_up(error)
                raise
            return protocol.decode_reply(message.task_id, document.reply()).to_legacy_tuple()

    @property
    def desc(self) -> dict[str, Any]:
        """
        What the operator says of itself: ``doc``, ``options_schema``, ``results_schema``.

        Asked for once per client and kept; raises as :meth:`sync` does.
        """
        self._results.check_open()
        fetch = partial(self._fetch_description, None, self._results.deadline(None))
        return self._description.get(fetch)

    # Its life.

    def close(self) -> None:
        """
        Release the client's leases; a second call does nothing.

        Waits outstanding, in whatever thread, and later calls get
        :class:`ClientClosedError`. The last client of a sharing key closes its
        connections. With ``cancel_on_timeout`` it waits, a second at most, until
        what was given up is revoked.
        """
        if not self._closed:
            self._closed = True
            try:
                self._drain()
            finally:
                try:
                    self._results.close()
                finally:
                    self._transport.release()

    def __enter__(self) -> "OperatorClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self._closed = True
            # Neither takes a lock or does I/O; handles that live on are told.
            self._results.end_waits()
            self._revoker.abandon()
            self._transport.abandon()
            # At last, since it raises where warnings are errors.
            if not sys.is_finalizing():
                warnings.warn(f"{self!r} was never closed", ResourceWarning, 2, source=self)

    def _gave_up(self, error: TaskTimeoutError) -> None:
        if error.timeout:  # 0 was a look, which gives nothing up
            self._revoker.give_up([error.task_id])

    def _wait(
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
            self._submitter.send(submit)
            submit = None
        return self._results.wait(
            task_id,
            limit,
            delete=self.config.auto_forget_result,
            deadline=deadline,
            submit=None if submit is None else partial(self._submitter.begin, submit),
            queue=queue,
        )

    def _drain(self) -> None:
        drained = self._revoker.drain()
        if drained is not None:
            wait([drained], _DRAINING)

    def _learn_options(self, controls: TaskControls, deadline: float) -> TaskControls:
        limit = self._results.wait_limit(controls.timeout)
        if limit == 0:
            limit, deadline = self.config.timeout, self._results.deadline(None)
        return learn_options(
            self._submitter, self._description, self._fetch_description, controls, limit, deadline
        )

    def _fetch_description(self, limit: float | None, deadline: float) -> dict[str, Any]:
        telemetry = self._telemetry
        asked = Priority.HIGH
        with UNOBSERVED if telemetry is None else telemetry.request("desc", asked) as observed:
            message = self._submitter.description(observed)
            task_id = self._submitter.send(message)
            try:
                reply = self._wait(task_id, limit, deadline, queue=message.queue).reply()
            except TaskTimeoutError as error:
                self._gave_up(error)
                raise
            return protocol.decode_description(task_id, reply).to_dict()


def create_client(
    operator_name: str, operator_version: str, **kwargs: Unpack[ClientArguments]
) -> OperatorClient:
    """Return an :class:`OperatorClient`; *kwargs* are its arguments."""
    return OperatorClient(operator_name, operator_version, **kwargs)
