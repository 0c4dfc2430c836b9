"""From a caller's arguments to a message, and from its outcome to an error."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from sandai.op.models import InvalidTaskError, OperatorError, Priority, protocol, queue_name

from ._config import Config
from ._errors import TransportError
from ._message import MessageFactory, TaskMessage
from ._operations import Request, Sending
from ._options_schema import Check, options_check

#: The attempt of a task whose id the caller gave: it may not be the first, nor the last.
_ANY_ATTEMPT = 2


@frozen
class TaskControls:
    """What a call says of its tasks besides artifacts and options."""

    priority: str | None = None
    timeout: float | None = None
    cancel_key: str | None = None
    persistent_output: bool = False


class TaskBuilder:
    """Build one client's messages; colour-neutral, no I/O."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._task_name, self._queues = config.task_name, config.queue_names
        self._attempt = 1 if config.submit_retries else 0
        self._check_options: Check | None = _unlearned if config.validate_options else None

    @property
    def wants_schema(self) -> bool:
        """Whether options are to be checked, and the schema is not known yet."""
        return self._check_options is _unlearned

    def learn_schema(self, schema: object) -> None:
        """
        Check options by an operator's ``options_schema`` from now on.

        Raises :class:`ConfigurationError` for what is no schema.
        """
        self._check_options = options_check(schema)

    def wait_limit(self, timeout: float | None) -> float | None:
        """Return a call's limit in seconds: ``None`` for good, 0 for one look."""
        return protocol.wait_limit(timeout, self._config.timeout)

    def check(self, controls: TaskControls) -> None:
        """Raise for controls that no task can be sent with."""
        self.wait_limit(controls.timeout)
        Priority.parse(self._priority(controls))
        protocol.check_cancel_key(controls.cancel_key)

    def task(
        self,
        messages: MessageFactory,
        reply_to: str,
        input_artifacts: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        controls: TaskControls,
        observed: Request | Sending | None = None,
        task_id: str | None = None,
        *,
        checked: bool = True,
    ) -> TaskMessage:
        """
        Return the message of a task, its options *checked* where the client wants that.

        A task whose *task_id* the caller gives may have been submitted before: where the
        broker can tell, it is queued once. Where the call is *observed*, the message
        carries the trace. Raises :class:`InvalidTaskError`,
        :class:`InvalidPriorityError` and :class:`ConfigurationError` (the timeout).
        """
        sending = None if observed is None else observed.sending()
        limit = self.wait_limit(controls.timeout)
        kwargs = protocol.build_kwargs(
            input_artifacts,
            options,
            deadline=time.time() + limit if limit else None,
            cancel_key=controls.cancel_key or self._config.cancel_key,
            persistent_output=controls.persistent_output,
            tracing=None if sending is None else sending.carrier,
        )
        if checked and self._check_options is not None:
            self._check_options(kwargs["options"])
        message = self._message(messages, reply_to, kwargs, self._priority(controls), task_id)
        return message if sending is None else _told(message, sending)

    @staticmethod
    def no_tasks(tasks: object) -> InvalidTaskError:
        """Return the error for what is given as tasks and is none."""
        kind = type(tasks).__name__
        return InvalidTaskError(
            "tasks", f"pairs of artifacts and options were expected, not {kind}"
        )

    @classmethod
    def iterated(cls, tasks: object) -> Iterator[Any]:
        """Begin with tasks; raises :class:`InvalidTaskError` for what is no iterable of any."""
        if isinstance(tasks, str | bytes | Mapping) or not isinstance(tasks, Iterable):
            raise cls.no_tasks(tasks)
        return iter(tasks)

    @classmethod
    def listed(cls, tasks: object) -> list[Any]:
        """Return a batch as a list; raises :class:`InvalidTaskError` for what is no batch."""
        return list(cls.iterated(tasks))

    def item(
        self,
        messages: MessageFactory,
        reply_to: str,
        index: int,
        task: object,
        controls: TaskControls,
        observed: Sending | None = None,
    ) -> TaskMessage | InvalidTaskError:
        """Return the message of a batch's task at *index*, or why there can be none."""
        try:
            if not isinstance(task, tuple | list) or len(task) not in (2, 3):
                raise InvalidTaskError(
                    f"tasks[{index}]",
                    "a pair (input_artifacts, options) was expected, or that and a task_id",
                )
            task_id = protocol.check_task_id(task[2]) if len(task) == 3 else None
            return self.task(messages, reply_to, task[0], task[1], controls, observed, task_id)
        except InvalidTaskError as error:
            return error

    def probe(
        self,
        messages: MessageFactory,
        reply_to: str,
        timeout: float,
        priority: str | None = Priority.LOW,
        observed: Request | None = None,
    ) -> TaskMessage:
        """Return the message of a probe, which a late operator skips."""
        controls = TaskControls(priority, timeout)
        options = protocol.PROBE_OPTIONS  # which are no operator's own: nothing to check
        return self.task(messages, reply_to, [], options, controls, observed, checked=False)

    def description(
        self, messages: MessageFactory, reply_to: str, observed: Request | None = None
    ) -> TaskMessage:
        """Return the message that asks the operator what it is; it carries no trace."""
        sending = None if observed is None else observed.sending()
        kwargs = dict(protocol.DESCRIPTION_KWARGS)
        message = self._message(messages, reply_to, kwargs, Priority.HIGH)
        return message if sending is None else _told(message, sending)

    def failure(self, message: TaskMessage, outcome: OperatorError) -> OperatorError:
        """Return the caller's error for a message that was not, or not surely, queued."""
        if isinstance(outcome, TransportError):
            return outcome.for_operator(
                self._config.operator_name, self._config.operator_version, message.task_id
            )
        return outcome

    def queue(self, controls: TaskControls) -> str:
        """Return the queue of tasks that are sent with these controls."""
        return self._queues[self._priority(controls)]

    def _priority(self, controls: TaskControls) -> str:
        return self._config.priority if controls.priority is None else controls.priority

    def _message(
        self,
        messages: MessageFactory,
        reply_to: str,
        kwargs: Mapping[str, Any],
        priority: str,
        task_id: str | None = None,
    ) -> TaskMessage:
        queue = self._queues.get(priority) if type(priority) is str else None
        if queue is None:
            config = self._config
            queue = queue_name(priority, config.operator_name, config.operator_version)  # raises
        return messages.make(
            self._task_name,
            queue,
            kwargs,
            reply_to=reply_to,
            attempt=self._attempt if task_id is None else _ANY_ATTEMPT,
            task_id=task_id,
        )


def _unlearned(options: Mapping[str, Any]) -> None:
    """Stand in for a check until the schema is known."""
    raise RuntimeError("options are to be checked, and nobody has asked for their schema")


def _told(message: TaskMessage, sending: Sending) -> TaskMessage:
    """Return the message with whom to tell what becomes of it."""
    sending.holds(message.task_id)
    return evolve(message, sending=sending)
