"""What a submission returns: Celery's ``AsyncResult`` on our bounded backend."""

import weakref
from collections.abc import Iterable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from celery import Celery
from celery.backends.base import BaseBackend
from celery.result import AsyncResult, result_from_tuple
from celery.utils.time import maybe_iso8601
from vine import barrier

from sandai.op.transport import READY_STATES, ResultDocument, check_signal

if TYPE_CHECKING:
    from ._results import ResultReader


class BoundedBackend(BaseBackend):  # type: ignore[misc]  # Celery is untyped
    """
    A Celery result backend that asks one client's :class:`ResultReader`.

    Whatever is asked of an ``AsyncResult`` or a ``ResultSet`` ends up here, and
    so within the client's budget. Failures are our typed errors; no class that
    a result names is instantiated.
    """

    supports_native_join = True
    #: ``ResultSet.then()`` calls back only where results arrive by themselves.
    is_async = True

    def __init__(self, app: Celery, reader: "ResultReader") -> None:
        super().__init__(app, max_cached_results=-1)
        self._reader = reader

    def as_uri(self, include_password: bool = False) -> str:
        """Return a name; the URL is the client's own affair."""
        return "sandai-op"

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """Look once."""
        return self._meta(self._reader.look(task_id))

    def task_result_exists(self, task_id: str) -> bool:
        """Return whether anything is stored for the task."""
        return bool(self._reader.look_many([task_id]))

    def wait_for(
        self, task_id: str, timeout: float | None = None, *_: Any, **__: Any
    ) -> dict[str, Any]:
        """Wait until the task is ready; ``None`` is the client's timeout."""
        limit = self._reader.wait_limit(timeout)
        return self._meta(self._reader.wait(task_id, limit, delete=False))

    def get_many(
        self, task_ids: Iterable[str], timeout: float | None = None, *_: Any, **__: Any
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each task's meta as it becomes ready."""
        waiting = dict.fromkeys(task_ids)
        limit = self._reader.wait_limit(timeout)
        for document in self._reader.wait_many(list(waiting), limit, delete=False):
            del waiting[document.task_id]
            yield document.task_id, self._meta(document)
        for task_id in waiting:
            raise self._reader.late(task_id, limit)

    def add_pending_result(self, result: AsyncResult, weak: bool | None = None) -> AsyncResult:
        """Have ``then()``'s promise fulfilled; a plain ``get()`` waits by itself."""
        if weak is not None:
            held = weakref.ref(result) if weak else lambda: result

            def tell(document: ResultDocument) -> None:
                if (told := held()) is not None:
                    told._maybe_set_cache(self._meta(document))

            self._reader.watch(result.id, tell, keeper=result if weak else None)
        return result

    def revoked(self, task_id: str, *, terminate: bool) -> None:
        """Say so in the log, where that is asked for."""
        if self._reader.steps is not None:
            self._reader.steps.revoked([task_id], terminate=terminate)

    def __reduce__(self) -> Any:
        raise TypeError("a handle belongs to its client: keep its task_id, and attach() to it")

    def meta_from_decoded(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Return *meta*: exceptions in it are instances already."""
        return meta

    def _forget(self, task_id: str) -> None:
        self._reader.forget([task_id])

    def _meta(self, document: ResultDocument) -> dict[str, Any]:
        return celery_meta(document, self.app)


class OperatorAsyncResult(AsyncResult):  # type: ignore[misc]  # Celery is untyped
    """
    A task that was submitted, now or elsewhere.

    ``get()`` returns the operator's raw reply envelope. It raises
    :class:`TaskTimeoutError`, :class:`TaskExecutionError` (the Celery task
    failed), :class:`TaskCancelledError` (revoked) and
    :class:`InvalidResultFormatError`; it leaves the result to others, and where it
    runs out of time, the task too: ``cancel_on_timeout`` is not for handles.
    """

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self.id)

    def get(
        self, timeout: float | None = None, propagate: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Wait for the reply; *timeout* in seconds, ``None`` for the client's.

        Usable inside another task: it waits on a thread of its own.
        """
        inside = {"disable_sync_subtasks": False, **kwargs}
        return super().get(timeout, propagate, *args, **inside)

    wait = get

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """
        Tell the workers to skip the task; as Celery's, within the client's budget.

        Whoever waits for it gets :class:`TaskCancelledError`, when a worker comes to
        it. With *terminate* it is sent *signal* (``"SIGTERM"``) if it runs, where the
        workers are processes (``-P prefork``). With *wait* the workers' answers are
        waited for, *timeout* seconds (1). Raises :class:`ConfigurationError` for what
        is no signal, :class:`OperatorConnectionError` and
        :class:`ClientPoolTimeoutError`.
        """
        if signal is not None:
            check_signal(signal)
        answers = super().revoke(connection, terminate, signal, wait, timeout)
        self.backend.revoked(self.task_id, terminate=terminate)
        return answers

    def then(self, callback: Any, on_error: Any = None, weak: bool = False) -> Any:
        """
        Have *callback* called with this handle once the task is ready.

        It runs in the thread that reads results, or here when the result has
        been read already, and must not wait for results.
        """
        # Attached before it is watched: vine's promises are not thread-safe.
        attached = self.on_ready.then(callback, on_error)
        if self._cache is None:
            # A ResultSet, which asks this of its members when it is made, keeps them itself.
            self.backend.add_pending_result(self, weak=weak or isinstance(callback, barrier))
        return attached

    def _maybe_set_cache(self, meta: Any) -> Any:
        # Once: a promise that is fulfilled again calls callbacks again.
        return super()._maybe_set_cache(meta) if self._cache is None else self._cache

    def __deepcopy__(self, memo: Any) -> "OperatorAsyncResult":
        return copy(self)  # whose client stays the same

    def __del__(self) -> None:
        """Do nothing: finalizers do no I/O."""


@frozen
class SubmittedTask:
    """
    What became of one task of a batch that was handed in.

    With an ``error`` it is not, or not certainly, queued; ``task_id`` is then
    told where the fate is unknown.
    """

    index: int
    async_result: OperatorAsyncResult | None = None
    error: Exception | None = None
    #: The span that it was submitted in, for links; ``None`` without one.
    _link: object = field(default=None, eq=False, repr=False)

    @property
    def submitted(self) -> bool:
        """Whether the task is in its queue for certain."""
        return self.async_result is not None and self.error is None

    @property
    def link(self) -> object:
        """What a span of OpenTelemetry is linked by to the one that it was submitted in."""
        return self._link

    @property
    def task_id(self) -> str | None:
        """The task's id, where there is one."""
        if self.async_result is not None:
            return self.async_result.task_id
        return getattr(self.error, "task_id", None)


def celery_meta(document: ResultDocument, app: Celery) -> dict[str, Any]:
    """Return what an ``AsyncResult`` reads; parts that it would stumble over are left out."""
    meta = {"result": None, **document.meta, "status": document.state}
    if document.state in READY_STATES and (failure := document.failure) is not None:
        meta["result"] = failure
    try:
        # Ready-made: what can be read here, ``AsyncResult`` might stumble over further down.
        if children := meta.get("children"):
            meta["children"] = [result_from_tuple(child, app) for child in children]
    except Exception:
        meta["children"] = None
    try:
        maybe_iso8601(meta.get("date_done"))
    except Exception:
        meta["date_done"] = None
    return meta
