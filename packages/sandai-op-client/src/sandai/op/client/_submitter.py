"""One client's way into the queues, from a thread."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery._state import get_current_worker_task

from sandai.op.models import ClientPoolTimeoutError
from sandai.op.transport import (
    UNOBSERVED,
    Attempts,
    BatchOutcomes,
    BatchSubmission,
    Broker,
    Config,
    Item,
    Outcome,
    Posting,
    RedisBackend,
    RedisBroker,
    Request,
    Sending,
    Steps,
    TaskBuilder,
    TaskControls,
    TaskMessage,
    Telemetry,
    Transport,
    TransportError,
)

Artifacts = Sequence[Mapping[str, Any]]
Options = Mapping[str, Any]
#: A third part is an id of the caller's own.
Task = tuple[Artifacts, Options] | tuple[Artifacts, Options, str]
Tasks = Iterable[Task]


class Submitter:
    """
    Build messages and queue them.

    *attach* makes the handle that Celery adds to the children of a task from
    inside which we submit.
    """

    def __init__(
        self,
        config: Config,
        transport: Transport,
        attach: Callable[[str], object],
        steps: Steps | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._config = config
        self._transport = transport
        self._attach = attach
        self._steps = steps
        self._telemetry = telemetry
        self._builder = TaskBuilder(config)

    def task(
        self,
        artifacts: Artifacts,
        options: Options,
        controls: TaskControls,
        observed: Request | Sending | None = None,
    ) -> TaskMessage:
        """Build a task's message, or raise why there can be none."""
        broker, reply_to = self._road()
        return self._builder.task(broker.messages, reply_to, artifacts, options, controls, observed)

    def tasks(self, tasks: Tasks, controls: TaskControls, *, first: int = 0) -> BatchOutcomes:
        """
        Queue many tasks; return each one's id, or why it was not (surely) queued.

        *first* is the number of the first one.
        """
        telemetry = self._telemetry
        with UNOBSERVED if telemetry is None else telemetry.batch(controls.priority) as observed:
            broker, reply_to = self._road()
            batch = BatchSubmission(
                self._builder, broker.messages, reply_to, tasks, controls, first, observed
            )
            while not batch.done:
                while batch.prepare():
                    pass
                batch.settle(self._send(batch.messages))
            return batch.outcomes

    @property
    def wants_schema(self) -> bool:
        """Whether the operator's ``options_schema`` must be learnt before a task is built."""
        return self._builder.wants_schema

    def check(self, controls: TaskControls) -> None:
        """Raise for controls that no task can be sent with."""
        self._builder.check(controls)

    def learn_schema(self, schema: object) -> None:
        """Check options by this from now on; see :meth:`TaskBuilder.learn_schema`."""
        self._builder.learn_schema(schema)

    def queue(self, controls: TaskControls) -> str:
        """Return where tasks go that are submitted with these controls."""
        return self._builder.queue(controls)

    def forget(self, task_ids: Sequence[str]) -> None:
        """Keep no account any more of whether these tasks were submitted."""
        self._transport.broker.forget(task_ids)

    def probe(self, timeout: float, observed: Request | None = None) -> TaskMessage:
        """Build a probe's message."""
        broker, reply_to = self._road()
        return self._builder.probe(broker.messages, reply_to, timeout, observed=observed)

    def ping(self, timeout: float) -> None:
        """Try to queue a task where the client's own go, and leave nothing behind."""
        broker, reply_to = self._road()
        priority = self._config.priority
        message = self._builder.probe(broker.messages, reply_to, timeout, priority)
        limit = self._builder.wait_limit(timeout)
        patience = self._config.pool_acquire_timeout
        broker.ping(
            message,
            acquire_timeout=patience if limit is None else min(limit, patience),
            timeout=limit,
        )

    def description(self, observed: Request | None = None) -> TaskMessage:
        """Build the message that asks the operator what it is."""
        broker, reply_to = self._road()
        return self._builder.description(broker.messages, reply_to, observed)

    def send(self, message: TaskMessage) -> str:
        """Queue one message and return its id, or raise why it was not queued."""
        [outcome] = self._send([message])
        if outcome is not None:
            raise self._builder.failure(message, outcome)
        return message.task_id

    def begin(self, message: TaskMessage, wake: Callable[[], object]) -> "Submission":
        """
        Hand in one task while its result is waited for already.

        *wake* is called, in any thread, when the submission is to be pursued. Raises
        why it was not queued, if that is known at once.
        """
        return Submission(self, message, wake)

    def post(
        self, message: TaskMessage, wake: Callable[[Posting[Item]], object]
    ) -> Posting[Item] | None:
        """Begin to queue a message; ``None`` when that has been done meanwhile."""
        broker = self._transport.broker
        if (
            isinstance(broker, RedisBroker)
            and isinstance(self._transport.backend, RedisBackend)
            and not self._config.submit_retries
        ):
            patience = self._config.pool_acquire_timeout
            if self._steps is not None:
                self._steps.handing_in([message])
            return broker.post(message, acquire_timeout=patience, wake=wake)
        self.send(message)
        return None

    def settle(self, message: TaskMessage, outcome: Outcome) -> None:
        """Note what became of a message that was posted; raise why it was not queued."""
        broker = self._transport.broker
        assert isinstance(broker, RedisBroker)
        broker.note_sent([message], [outcome])
        self._note([message], [outcome])
        if outcome is not None:
            raise self._builder.failure(message, outcome)

    def _send(self, messages: Sequence[TaskMessage]) -> list[Outcome]:
        if not messages:
            return []
        if self._steps is not None:
            self._steps.handing_in(messages)
        attempts = Attempts(self._transport.broker, messages, self._config.submit_retries)
        while (pause := attempts.settle(self._send_once(attempts.messages))) is not None:
            time.sleep(pause)
        self._note(messages, attempts.outcomes)
        return attempts.outcomes

    def _send_once(self, messages: Sequence[TaskMessage]) -> list[Outcome]:
        try:
            self._transport.backend.before_submit()
            return self._transport.broker.send(
                messages, acquire_timeout=self._config.pool_acquire_timeout
            )
        except (TransportError, ClientPoolTimeoutError) as error:
            return [error] * len(messages)

    def _note(self, messages: Sequence[TaskMessage], outcomes: list[Outcome]) -> None:
        for message, outcome in zip(messages, outcomes, strict=True):
            if message.sending is not None:
                message.sending.settle(outcome)
            if outcome is None and message.parent_id is not None:
                get_current_worker_task().add_trail(self._attach(message.task_id))
        if self._steps is not None:
            self._steps.queued(messages, outcomes)

    def _road(self) -> tuple[Broker, str]:
        return self._transport.broker, self._transport.backend.reply_to


class Submission:
    """
    A task on its way into the queue, for a caller that waits for its result already.

    Until its outcome is known, the caller calls :meth:`pursue`, again whenever it was
    woken and after the seconds that the last call returned.
    """

    def __init__(
        self, submitter: Submitter, message: TaskMessage, wake: Callable[[], object]
    ) -> None:
        self._submitter = submitter
        self._message = message
        self._wake = wake
        #: Whether the caller wants to be woken by success, too.
        self.urgent = False
        self._posting = submitter.post(message, self._told)

    @property
    def settled(self) -> bool:
        """Whether its outcome is known."""
        return self._posting is None

    def pursue(self) -> float:
        """
        Do what falls to this caller; return for how many seconds to wait for news.

        Raises why the task was not queued.
        """
        posting = self._posting
        if posting is None:
            return math.inf
        pause = posting.pursue()
        if posting.outcomes is not None:
            self._posting = None
            self._submitter.settle(self._message, posting.outcomes[0])
        return pause

    def succeed(self) -> None:
        """Its result is there: it was queued, whatever is yet to be heard of that."""
        if self._posting is not None:
            self._posting = None
            self._submitter.settle(self._message, None)

    def withdraw(self) -> None:
        """Give up; what has been sent stays so."""
        if self._posting is not None:
            self._posting.withdraw()

    def _told(self, posting: Posting[Item]) -> None:
        if self.urgent or posting.outcomes is None or posting.outcomes[0] is not None:
            self._wake()
