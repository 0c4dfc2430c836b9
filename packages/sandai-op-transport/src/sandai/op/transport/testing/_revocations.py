"""Which tasks were revoked: those in a queue are taken out, those to come are skipped."""

import json
from collections.abc import Iterable, Mapping

from ._messages import FakeTask, decode
from ._store import Store

#: As many as a Celery worker remembers.
_REMEMBERED = 50_000


class Revocations:
    """One operator's; its world is locked meanwhile."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def revoke(
        self, task_ids: Iterable[str], queues: Mapping[bytes, str], store: Store
    ) -> list[FakeTask]:
        """Note tasks, and take those that are queued out of the store; return these."""
        wanted = dict.fromkeys(task_ids)
        self._ids |= wanted
        while len(self._ids) > _REMEMBERED:
            del self._ids[next(iter(self._ids))]
        taken: list[FakeTask] = []
        for key, queue in queues.items():
            for envelope in store.values(key):
                if _task_id(envelope) in wanted and store.remove(key, 1, envelope):
                    taken.append(decode(queue, envelope))
        return taken

    def covers(self, task: FakeTask) -> bool:
        """Return whether a task was revoked."""
        return task.task_id in self._ids

    def ids(self) -> list[str]:
        """Return what is remembered."""
        return list(self._ids)


def _task_id(envelope: bytes) -> object:
    try:
        return json.loads(envelope)["headers"]["id"]
    except (ValueError, LookupError, TypeError):
        return None
