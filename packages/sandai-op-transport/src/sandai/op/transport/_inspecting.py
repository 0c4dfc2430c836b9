"""Finding out what there is to see, all of it within one timeout."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from typing import Any

from celery import Celery

from sandai.op.models import OperatorError, protocol, redact

from ._broker import QueueDepth
from ._config import Config
from ._errors import TransportError
from ._inspection import Inspection, Worker
from ._message import new_id
from ._registry import Transport
from ._url import is_redis
from ._values import as_positive_duration

#: Seconds of silence after which no more workers are expected to answer, at most.
_SILENCE = 1.0


def inspect(
    config: Config, transport: Transport, make_app: Callable[[], Celery], timeout: float
) -> Inspection:
    """
    Ask broker, workers and backend, all at once; return what is known after *timeout* seconds.

    Blocks, as a rule for about a second: workers answer or they do not. The questions are
    asked in threads, for not every library keeps to a timeout; one that is late ends by
    itself. *make_app* returns an app that Celery's ``control`` can be used on. Raises
    :class:`ConfigurationError` for a timeout that is none, and never for a server.
    """
    timeout = as_positive_duration("timeout", timeout)
    # Before anything is asked: our own questions are not counted.
    broker, backend = transport.broker.statistics(), transport.backend.statistics()
    patience = min(timeout, config.pool_acquire_timeout)
    queues = config.queue_names
    workers: dict[str, tuple[str, ...]] = {}

    def ask_broker() -> list[QueueDepth]:
        return transport.broker.depths(
            list(queues.values()), acquire_timeout=patience, timeout=timeout
        )

    def ask_workers() -> None:
        # One question for both: who answers is alive, and says what it consumes.
        with _to_listen(config, transport, patience):
            make_app().control.broadcast(
                "active_queues",
                reply=True,
                timeout=min(_SILENCE, timeout / 2),
                callback=lambda answer: workers.update(_consumed(answer, set(queues.values()))),
            )

    def ask_backend() -> None:
        transport.backend.look([new_id()], acquire_timeout=patience)

    answers, problems = _ask(
        {"broker": ask_broker, "workers": ask_workers, "backend": ask_backend}, timeout
    )
    why = problems.get("broker")
    depths = answers.get("broker") or [QueueDepth(q, None, problem=why) for q in queues.values()]
    return Inspection(
        operator_name=config.operator_name,
        operator_version=config.operator_version,
        broker_url=config.broker_url,
        result_backend=config.result_backend,
        queues=dict(zip(queues, depths, strict=True)),
        workers=tuple(Worker(name, workers[name]) for name in sorted(workers.copy())),
        broker=broker,
        backend=backend,
        broker_problem=why,
        workers_problem=problems.get("workers"),
        backend_problem=problems.get("backend"),
    )


def _to_listen(
    config: Config, transport: Transport, patience: float
) -> AbstractContextManager[None]:
    """Hold the permit of the second connection that kombu listens on, on Redis."""
    if not is_redis(config.broker_url):
        return nullcontext()
    if config.broker_pool_limit == 1:
        raise TransportError("workers are asked over two connections: broker_pool_limit is 1")
    return transport.broker.permit(patience)


def _ask(
    questions: Mapping[str, Callable[[], Any]], timeout: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the answers by name, and why there is none to the others."""
    answers: dict[str, Any] = {}
    problems: dict[str, str] = {}
    told: SimpleQueue[tuple[str, Any, str | None]] = SimpleQueue()
    deadline = time.monotonic() + timeout
    for name, question in questions.items():

        def work(name: str = name, question: Callable[[], Any] = question) -> None:
            try:
                told.put((name, question(), None))
            except Exception as error:
                told.put((name, None, _said(error)))

        threading.Thread(target=work, name=f"sandai-op-inspect-{name}", daemon=True).start()
    waiting = set(questions)
    while waiting:
        try:
            name, answer, problem = told.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            break
        waiting.discard(name)
        if problem is None:
            answers[name] = answer
        else:
            problems[name] = problem
    return answers, problems | dict.fromkeys(waiting, f"no answer within {timeout:g} s")


def _said(error: Exception) -> str:
    # Ours say it in words; what a library raises may have any.
    said = str(error) if isinstance(error, OperatorError) else protocol.describe_error(error)
    return str(redact(said))


def _consumed(answer: object, known: set[str]) -> dict[str, tuple[str, ...]]:
    """Return which of the *known* queues the workers of an answer consume."""
    if not isinstance(answer, Mapping):
        return {}
    consumed = {}
    for worker, queues in answer.items():
        listed = queues if isinstance(queues, list) else []
        names = (queue.get("name") for queue in listed if isinstance(queue, Mapping))
        mine = {name for name in names if isinstance(name, str)} & known
        consumed[str(worker)] = tuple(sorted(mine))
    return consumed
