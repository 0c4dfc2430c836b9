"""Callers of both colours that do everything a client can, and account for every task."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen

from colours import Colour
from sandai.op.models import (
    ClientClosedError,
    ClientPoolTimeoutError,
    OperatorConnectionError,
    OperatorError,
    TaskTimeoutError,
)

ACQUIRE, IO = 1.0, 0.5
RETRIES = 3
WAIT = 3.0
SLACK = 6.0
"""Seconds by which a call may be later than its bound: two cores, a hundred callers."""
ATTEMPT = ACQUIRE + 6 * IO + 1.25
"""Seconds of one attempt to submit: a connection, six replies to open and use it, a pause."""
PRIORITIES = ["high", "normal", "normal", "low"]
EXPECTED = (OperatorConnectionError, ClientPoolTimeoutError, TaskTimeoutError, ClientClosedError)
_numbers = itertools.count(1)


@define
class Ledger:
    """What callers know of tasks, by the numbers that these carry, and what went wrong."""

    acknowledged: set[int] = field(factory=set)
    refused: set[int] = field(factory=set)
    """Their submission raised, and named no task."""
    doubted: dict[int, str] = field(factory=dict)
    """Their submission raised, and named the task."""
    answered: int = 0
    ended: Counter[str] = field(factory=Counter)
    longest: dict[str, float] = field(factory=dict)
    wrong: list[str] = field(factory=list)

    def add(self, other: Ledger) -> None:
        """Take over what another one has."""
        self.acknowledged |= other.acknowledged
        self.refused |= other.refused
        self.doubted |= other.doubted
        self.answered += other.answered
        self.ended += other.ended
        for what, took in other.longest.items():
            self.longest[what] = max(took, self.longest.get(what, 0.0))
        self.wrong += other.wrong

    def failed(self, n: int, error: Exception) -> None:
        """Note that a task could not be submitted, or that this is in doubt."""
        task_id = getattr(error, "task_id", None)
        if task_id is None:
            self.refused.add(n)
        else:
            self.doubted[n] = task_id


@frozen
class Clients:
    """Clients that callers of one colour share; each may be replaced, and closed, at any time."""

    colour: Colour
    settings: dict[str, Any]
    open: list[Any] = field(factory=list)
    _lock: threading.Lock = field(factory=threading.Lock)

    def fill(self, count: int) -> None:
        """Make them: every other one submits again."""
        self.open.extend(self.make(position) for position in range(count))

    def make(self, position: int) -> Any:
        """Make one for a place."""
        return self.colour.make(**self.settings, submit_retries=RETRIES * (position % 2))

    def replace(self, position: int) -> Any:
        """Put a new one in a place, and return the old one for the caller to close."""
        new = self.make(position)
        with self._lock:
            old, self.open[position] = self.open[position], new
        return old


class Caller:
    """One thread, or one coroutine, that calls whatever comes to its mind."""

    def __init__(self, clients: Clients, seed: str, over: Callable[[], bool]) -> None:
        self.ledger = Ledger()
        self._clients = clients
        self._colour = clients.colour
        self._choice = random.Random(seed)
        self._over = over
        self._known: deque[tuple[str, int]] = deque(maxlen=20)
        self._operations: list[Callable[[Any], Coroutine[Any, Any, None]]] = [
            *[self.sync] * 60,
            *[self.call_and_get] * 60,
            *[self.look] * 40,
            *[self.batch] * 30,
            *[self.batch_in_two] * 30,
            *[self.together] * 20,
            *[self.attach] * 20,
            *[self.own_client, self.ping, self.probe, self.describe] * 10,
            *[self.replace] * 2,
        ]

    async def run(self) -> None:
        """Call until it is over."""
        while not self._over():
            await self._one()
            await self._colour.pause(self._choice.uniform(0.0, 0.05))

    async def run_and_cancel(self) -> None:
        """Call until it is over, and cancel every third call on its way."""
        while not self._over():
            if self._choice.random() < 2 / 3:
                await self._one()
            else:
                await self._cancel()
            await asyncio.sleep(self._choice.uniform(0.0, 0.05))

    async def _one(self) -> None:
        operation = self._choice.choice(self._operations)
        position = self._choice.randrange(len(self._clients.open))
        try:
            await operation(self._clients.open[position])
        except EXPECTED as error:
            self._ended(operation, type(error).__name__)
        except Exception:
            self.ledger.wrong.append(traceback.format_exc())
        else:
            self._ended(operation, "well")

    async def _cancel(self) -> None:
        call = asyncio.create_task(self._one())
        await asyncio.sleep(self._choice.choice([0.0, 0.001, 0.01, 0.1, 0.5]))
        call.cancel()
        with self._within(0.0, "cancelled"):
            await asyncio.wait([call])
        self.ledger.ended["cancelled" if call.cancelled() else "too late to cancel"] += 1

    def _ended(self, operation: Callable[..., Any], how: str) -> None:
        self.ledger.ended[f"{operation.__name__}: {how}"] += 1

    # What is noted

    @contextmanager
    def _within(self, seconds: float, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            late = time.monotonic() - began - seconds
            self.ledger.longest[what] = max(late, self.ledger.longest.get(what, -seconds))
            if late > SLACK:
                self.ledger.wrong.append(
                    f"{self._colour.name}: {what} ended {late:.1f} s after {seconds:.1f} s"
                )

    def _submitting(self, client: Any) -> float:
        return ATTEMPT * (1 + int(client.config.submit_retries))

    def _task(self) -> tuple[int, tuple[list[Any], dict[str, Any]]]:
        n = next(_numbers)
        options: dict[str, Any] = {"n": n}
        if self._choice.random() < 0.3:
            options["delay"] = self._choice.uniform(0.0, 0.3)
        return n, ([], options)

    def _check(self, n: int, results: Any) -> None:
        if results["n"] == n:
            self.ledger.answered += 1
        else:
            self.ledger.wrong.append(f"{self._colour.name}: task {n} got {results!r}")

    async def _submit(self, client: Any) -> tuple[int, Any]:
        n, task = self._task()
        priority = self._choice.choice(PRIORITIES)
        try:
            with self._within(self._submitting(client), "submitting"):
                handle = await self._colour.call(client.async_call, *task, priority=priority)
        except OperatorError as error:
            self.ledger.failed(n, error)
            if getattr(error, "task_id", None) is not None:
                await self._settle_doubt(n, client)
            raise
        self.ledger.acknowledged.add(n)
        self._known.append((handle.task_id, n))
        return n, handle

    async def _settle_doubt(self, n: int, client: Any) -> None:
        try:
            handle = await self._attached(client, self.ledger.doubted[n])
            await self._get(n, handle, 1.0)
        except EXPECTED as error:
            self.ledger.ended[f"in doubt: {type(error).__name__}"] += 1
        else:
            self.ledger.ended["in doubt: well"] += 1

    async def _attached(self, client: Any, task_id: str) -> Any:
        return await self._colour.call(client.attach, task_id)

    async def _get(self, n: int, handle: Any, timeout: float) -> None:
        try:
            with self._within(timeout, "get"):
                reply = await self._colour.call(handle.get, timeout=timeout)
        except TaskTimeoutError as error:
            if error.task_id != handle.task_id:
                self.ledger.wrong.append(f"{self._colour.name}: {handle.task_id}: {error!r}")
            raise
        self._check(n, reply["results"])

    # What is called

    async def sync(self, client: Any) -> None:
        """Submit and wait in one."""
        n, task = self._task()
        try:
            with self._within(WAIT + self._submitting(client), "sync"):
                _, results = await self._colour.call(client.sync, *task, timeout=WAIT)
        except TaskTimeoutError:
            self.ledger.acknowledged.add(n)
            raise
        except ClientClosedError:
            raise  # before it was queued, or while it was waited for
        except OperatorError as error:
            self.ledger.failed(n, error)
            raise
        self.ledger.acknowledged.add(n)
        self._check(n, results)

    async def call_and_get(self, client: Any) -> None:
        """Wait on a handle; some leave no result behind."""
        n, handle = await self._submit(client)
        await self._get(n, handle, WAIT)
        if self._choice.random() < 0.5:
            with self._within(ATTEMPT, "forget"):
                await self._colour.call(handle.forget)

    async def look(self, client: Any) -> None:
        """Look until it is ready."""
        n, handle = await self._submit(client)
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            with self._within(ATTEMPT, "look"):
                if await self._colour.call(handle.ready):
                    break
                await self._colour.state(handle)
            await self._colour.pause(0.02)
        await self._get(n, handle, 0.0 if self._choice.random() < 0.5 else WAIT)

    def _tasks(self) -> dict[int, tuple[list[Any], dict[str, Any]]]:
        return dict(self._task() for _ in range(self._choice.randrange(1, 30)))

    async def batch(self, client: Any) -> None:
        """Submit and collect in one."""
        tasks = self._tasks()
        with self._within(WAIT + self._submitting(client), "batch"):
            results = await self._colour.call(
                client.batch_sync_detailed, list(tasks.values()), timeout=WAIT
            )
        self._check_batch(tasks, results)

    def _check_batch(self, tasks: dict[int, Any], results: Sequence[Any]) -> None:
        for n, result in zip(tasks, results, strict=True):
            if result.success:
                self._check(n, result.results)
            elif not isinstance(result.error, EXPECTED):
                self.ledger.wrong.append(f"{self._colour.name}: task {n}: {result.error!r}")
            if result.submitted:
                self.ledger.acknowledged.add(n)
            else:
                self.ledger.failed(n, result.error)

    async def batch_in_two(self, client: Any) -> None:
        """Submit, then collect."""
        tasks = self._tasks()
        with self._within(self._submitting(client), "batch_submit"):
            submitted = await self._colour.call(client.batch_submit, list(tasks.values()))
        for n, submission in zip(tasks, submitted, strict=True):
            if submission.submitted:
                self.ledger.acknowledged.add(n)
            else:
                self.ledger.failed(n, submission.error)
        with self._within(WAIT, "batch_collect"):
            results = await self._colour.call(client.batch_collect, submitted, timeout=WAIT)
        self._check_batch(tasks, results)

    async def together(self, client: Any) -> None:
        """Wait on some handles at once."""
        submitted = [await self._submit(client) for _ in range(3)]
        with self._within(WAIT, "get_all"):
            replies = await self._colour.get_all([handle for _, handle in submitted], WAIT)
        for (n, _), reply in zip(submitted, replies, strict=True):
            self._check(n, reply["results"])

    async def attach(self, client: Any) -> None:
        """Ask again for a task of earlier, whose result may be gone."""
        if self._known:
            task_id, n = self._choice.choice(self._known)
            await self._get(n, await self._attached(client, task_id), 0.2)

    async def ping(self, client: Any) -> None:
        """Ask for the broker."""
        with self._within(ATTEMPT, "ping"):
            await self._colour.call(client.ping, 1.0)

    async def probe(self, client: Any) -> None:
        """Ask for a worker."""
        with self._within(WAIT + self._submitting(client), "probe"):
            health = await self._colour.call(client.probe, WAIT)
        if health.retrieval_ok != health.response_ok:
            self.ledger.wrong.append(f"{self._colour.name}: {health!r}")

    async def describe(self, client: Any) -> None:
        """Ask what the operator is."""
        # Who joins another caller may have to ask anew, after that one was cancelled.
        with self._within(2 * (WAIT + self._submitting(client)), "desc"):
            assert (await self._colour.describe(client))["doc"] == "ledger"

    async def replace(self, client: Any) -> None:
        """Close a client that others use."""
        position = self._choice.randrange(len(self._clients.open))
        old = self._clients.replace(position)
        with self._within(2 * IO, "close"):
            await self._colour.close(old)

    async def own_client(self, client: Any) -> None:
        """Make a client for one call."""
        own = self._clients.make(self._choice.randrange(2))
        try:
            await self.sync(own)
        finally:
            with self._within(2 * IO, "close"):
                await self._colour.close(own)
