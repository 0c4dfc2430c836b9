"""One client's way into the queues, from a thread."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery._state import get_current_worker_task

from sandai.op.models import ClientPoolTimeoutError, OperatorError
from sandai.op.transport import (
    BatchSubmission,
    Broker,
    Config,
    Outcome,
    TaskBuilder,
    TaskControls,
    TaskMessage,
    Transport,
    TransportError,
)

logger = logging.getLogger("sandai.op.client")

Artifacts = Sequence[Mapping[str, Any]]
Options = Mapping[str, Any]
Tasks = Iterable[tuple[Artifacts, Options]]


class Submitter:
    """
    Build messages and queue them.

    *attach* makes the handle that Celery adds to the children of a task from
    inside which we submit.
    """

    def __init__(
        self, config: Config, transport: Transport, attach: Callable[[str], object]
    ) -> None:
        self._config = config
        self._transport = transport
        self._attach = attach
        self._builder = TaskBuilder(config)

    def task(self, artifacts: Artifacts, options: Options, controls: TaskControls) -> TaskMessage:
        """Build a task's message, or raise why there can be none."""
        broker, reply_to = self._road()
        return self._builder.task(broker.messages, reply_to, artifacts, options, controls)

    def tasks(self, tasks: Tasks, controls: TaskControls) -> list[str | OperatorError]:
        """Queue many tasks; return each one's id, or why it was not (surely) queued."""
        broker, reply_to = self._road()
        batch = BatchSubmission(self._builder, broker.messages, reply_to, tasks, controls)
        while not batch.done:
            while batch.prepare():
                pass
            batch.settle(self._send(batch.messages))
        return batch.outcomes

    def probe(self, timeout: float) -> TaskMessage:
        """Build a probe's message."""
        broker, reply_to = self._road()
        return self._builder.probe(broker.messages, reply_to, timeout)

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

    def description(self) -> TaskMessage:
        """Build the message that asks the operator what it is."""
        broker, reply_to = self._road()
        return self._builder.description(broker.messages, reply_to)

    def send(self, message: TaskMessage) -> str:
        """Queue one message and return its id, or raise why it was not queued."""
        [outcome] = self._send([message])
        if outcome is not None:
            raise self._builder.failure(message, outcome)
        return message.task_id

    def _send(self, messages: Sequence[TaskMessage]) -> list[Outcome]:
        if not messages:
            return []
        try:
            self._transport.backend.before_submit()
            outcomes = self._transport.broker.send(
                messages, acquire_timeout=self._config.pool_acquire_timeout
            )
        except (TransportError, ClientPoolTimeoutError) as error:
            outcomes = [error] * len(messages)
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is None and message.parent_id is not None:
                get_current_worker_task().add_trail(self._attach(message.task_id))
        if self._config.debug:
            queued = outcomes.count(None)
            logger.debug("queued %d of %d tasks in %s", queued, len(messages), messages[0].queue)
        return outcomes

    def _road(self) -> tuple[Broker, str]:
        return self._transport.broker, self._transport.backend.reply_to
