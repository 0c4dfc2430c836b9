"""One client's way into the queues, from a loop."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery._state import get_current_worker_task

from sandai.op.models import ClientPoolTimeoutError, OperatorError
from sandai.op.transport import (
    UNOBSERVED,
    Attempts,
    Backend,
    BatchOutcomes,
    BatchSubmission,
    Broker,
    Config,
    Outcome,
    RedisBackend,
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

from ._hub import hub_of
from ._sender import RedisSender, Sender, sender_of
from ._turns import Breath, PerLoop

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
        self._senders: PerLoop[Broker, Sender] = PerLoop(sender_of)

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

    async def tasks(
        self,
        tasks: Tasks,
        controls: TaskControls,
        *,
        first: int = 0,
        unsure: list[str] | None = None,
    ) -> BatchOutcomes:
        """
        Queue many tasks; return each one's id, or why it was not (surely) queued.

        *first* is the number of the first one. When this is interrupted, *unsure* is given
        the ids of those that are queued, or may be by and by.
        """
        telemetry = self._telemetry
        with UNOBSERVED if telemetry is None else telemetry.batch(controls.priority) as observed:
            broker, reply_to = self._road()
            batch = BatchSubmission(
                self._builder, broker.messages, reply_to, tasks, controls, first, observed
            )
            breath = Breath()
            try:
                while not batch.done:
                    while batch.prepare():
                        if breath.due:
                            await breath()
                    batch.settle(await self._send(batch.messages))
            except BaseException:
                if unsure is not None:
                    unsure += batch.ids
                raise
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

    async def ping(self, timeout: float) -> None:
        """Try to queue a task where the client's own go, and leave nothing behind."""
        broker, reply_to = self._road()
        priority = self._config.priority
        message = self._builder.probe(broker.messages, reply_to, timeout, priority)
        limit = self._builder.wait_limit(timeout)
        patience = self._config.pool_acquire_timeout
        await self._senders.of(broker).ping(
            message, patience=patience if limit is None else min(limit, patience), timeout=limit
        )

    def description(self, observed: Request | None = None) -> TaskMessage:
        """Build the message that asks the operator what it is."""
        broker, reply_to = self._road()
        return self._builder.description(broker.messages, reply_to, observed)

    async def send(self, message: TaskMessage) -> str:
        """Queue one message and return its id, or raise why it was not queued."""
        [outcome] = await self._send([message])
        if outcome is not None:
            raise self._builder.failure(message, outcome)
        return message.task_id

    async def begin(
        self,
        message: TaskMessage,
        told: Callable[[OperatorError | None], object],
        loop: asyncio.AbstractEventLoop,
    ) -> Callable[[], None]:
        """
        Hand in one task while its result is waited for already.

        *told* is called once, in the loop's thread, with ``None`` when the task is queued
        or with why it is not. Returns what takes the task back, if it is not on its way
        yet.
        """
        sender = self._senders.of(self._transport.broker, loop)
        if (
            not isinstance(sender, RedisSender)
            or not isinstance(self._transport.backend, RedisBackend)
            or self._config.submit_retries
        ):
            await self.send(message)
            told(None)
            return _nothing

        if self._steps is not None:
            self._steps.handing_in([message])

        def settled(outcome: Outcome) -> None:
            self._note([message], [outcome])
            told(None if outcome is None else self._builder.failure(message, outcome))

        return sender.post(message, patience=self._config.pool_acquire_timeout, told=settled)

    async def _send(self, messages: Sequence[TaskMessage]) -> list[Outcome]:
        if not messages:
            return []
        if self._steps is not None:
            self._steps.handing_in(messages)
        attempts = Attempts(self._transport.broker, messages, self._config.submit_retries)
        pause = attempts.settle(await self._send_once(attempts.messages))
        while pause is not None:
            await asyncio.sleep(pause)
            pause = attempts.settle(await self._send_once(attempts.messages))
        self._note(messages, attempts.outcomes)
        return attempts.outcomes

    async def _send_once(self, messages: Sequence[TaskMessage]) -> list[Outcome]:
        patience = self._config.pool_acquire_timeout
        try:
            await _before_submit(self._transport.backend, patience)
            return await self._senders.of(self._transport.broker).send(messages, patience=patience)
        except (TransportError, ClientPoolTimeoutError) as error:
            return [error] * len(messages)

    def _note(self, messages: Sequence[TaskMessage], outcomes: list[Outcome]) -> None:
        for message, outcome in zip(messages, outcomes, strict=True):
            if message.sending is not None:
                message.sending.settle(outcome)
            if outcome is None and message.parent_id is not None:
                task = get_current_worker_task()
                if task is not None:
                    task.add_trail(self._attach(message.task_id))
        if self._steps is not None:
            self._steps.queued(messages, outcomes)

    def _road(self) -> tuple[Broker, str]:
        return self._transport.broker, self._transport.backend.reply_to


async def _before_submit(backend: Backend, patience: float) -> None:
    if not isinstance(backend, RedisBackend):
        await hub_of(backend).looks.prepare(patience=patience)


def _nothing() -> None:
    """There is nothing to take back."""
