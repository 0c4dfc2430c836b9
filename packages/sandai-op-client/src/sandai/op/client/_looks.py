"""One look at results: what is stored now, and its deletion."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from sandai.op.models import ClientClosedError, OperatorError, protocol
from sandai.op.transport import (
    Config,
    ResultDocument,
    Steps,
    Transport,
    TransportError,
    pending,
)

R = TypeVar("R")
_LOOK_KEYS = 1000


class ResultLooks:
    """One client's looks; it waits for nothing but the server."""

    def __init__(self, config: Config, transport: Transport, steps: Steps | None = None) -> None:
        self._config = config
        self._transport = transport
        #: What says each step, where that is asked for.
        self.steps = steps
        self._closed = False

    def look(self, task_id: str) -> ResultDocument:
        """
        Return one task's document as it is now.

        Raises :class:`OperatorConnectionError`, :class:`ClientPoolTimeoutError`
        and :class:`ClientClosedError`.
        """
        found = self.look_many([task_id])
        return found[0] if found else pending(task_id)

    def look_many(self, task_ids: Sequence[str]) -> list[ResultDocument]:
        """Return what is stored now; raises as :meth:`look` does."""
        self.check_open()
        for task_id in task_ids:
            protocol.check_task_id(task_id)
        documents: list[ResultDocument] = []
        for start in range(0, len(task_ids), _LOOK_KEYS):
            chunk = task_ids[start : start + _LOOK_KEYS]
            documents += self._guarded(self._transport.backend.look, chunk) or []
        if self.steps is not None:
            self.steps.looked(documents)
        return documents

    def forget(self, task_ids: Sequence[str]) -> None:
        """Delete results; raises as :meth:`look` does."""
        self.check_open()
        for task_id in task_ids:
            protocol.check_task_id(task_id)
        for start in range(0, len(task_ids), _LOOK_KEYS):
            self._guarded(self._transport.backend.delete, task_ids[start : start + _LOOK_KEYS])
        if self.steps is not None:
            self.steps.deleted(task_ids)

    def look_once(self, task_ids: Sequence[str], *, delete: bool) -> Iterator[ResultDocument]:
        """Yield what is ready now, and have it deleted; raises as :meth:`look` does."""
        ready = [document for document in self.look_many(task_ids) if document.ready]
        if delete and ready:
            # A deletion that fails must not cost the results: they expire.
            with suppress(OperatorError):
                self.forget([document.task_id for document in ready])
        yield from ready

    def check_open(self) -> None:
        """Raise :class:`ClientClosedError` after :meth:`close`."""
        if self._closed:
            raise self._closed_error()

    def _guarded(self, call: Callable[..., R], task_ids: Sequence[str]) -> R:
        try:
            return call(task_ids, acquire_timeout=self._config.pool_acquire_timeout)
        except TransportError as error:
            raise error.for_operator(
                self._config.operator_name, self._config.operator_version
            ) from error

    def _closed_error(self) -> ClientClosedError:
        return ClientClosedError(self._config.operator_name, self._config.operator_version)
