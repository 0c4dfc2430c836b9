"""What becomes of an answer: a document, stored and published as Celery's backend does it."""

from sandai.op.models import OperatorDescription, OperatorError, TaskResult, error_reply

from ._documents import document, failure, revoked
from ._messages import FakeTask
from ._world import RESULT, World


class Results:
    """Write one operator's results into its world, for so many seconds."""

    def __init__(self, world: World, serializer: str, expires: float) -> None:
        self._world = world
        self._serializer = serializer
        self._expires = expires

    def payload(self, task: FakeTask, value: object, state: str | None = None) -> bytes:
        """
        Return the document of an answer, or of an exception that was raised in place of one.

        A *state* has it stored as it is.
        """
        try:
            if state == "REVOKED":
                return self.revoked(task, "revoked")
            if isinstance(value, OperatorError):
                value = error_reply(value)
            if isinstance(value, BaseException):
                return failure(task, value, serializer=self._serializer)
            if value is None and state is None:
                value = TaskResult()
            if isinstance(value, TaskResult | OperatorDescription):
                value = value.to_reply()
            return document(task, state or "SUCCESS", value, serializer=self._serializer)
        except OperatorError as error:
            return document(task, "SUCCESS", error_reply(error), serializer=self._serializer)
        except Exception as error:
            # As a worker has it whose backend cannot encode what a task returned.
            return failure(task, error, serializer=self._serializer)

    def revoked(self, task: FakeTask, reason: str) -> bytes:
        """Return the document of a task that was revoked, or terminated."""
        return revoked(task, reason, serializer=self._serializer)

    def write(
        self, task: FakeTask, payload: bytes, *, stored: bool = True, published: bool = True
    ) -> None:
        """Store a document and publish it."""
        key = RESULT + task.task_id.encode()
        with self._world.lock:
            if stored:
                self._world.store.set(key, payload, self._expires)
            if published:
                self._world.publish(key, payload)
