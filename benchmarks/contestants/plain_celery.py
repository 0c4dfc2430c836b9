"""Celery as one uses it without a client: send_task, get, forget; its own pools and defaults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from .driving import Call, call_in_threads, call_in_turn, time_batch
from .job import TIMEOUT, Job, serve


def _app(job: Job) -> Any:
    return Celery("bench", broker=job.broker_url, backend=job.backend_url)


def _send(app: Any, job: Job, number: int) -> Any:
    kwargs = {"meta": {"persistent-output": False}, "artifacts": [], "options": {"number": number}}
    return app.send_task(job.task_name, kwargs=kwargs, queue=job.queue)


def _receive(result: Any, number: int) -> None:
    reply = result.get(timeout=TIMEOUT)
    result.forget()
    if reply["results"]["number"] != number:
        raise AssertionError(f"{reply} is not the answer to {number}")


@contextmanager
def _opened(job: Job) -> Iterator[Call]:
    with _app(job) as app:
        yield lambda number: _receive(_send(app, job, number), number)


def _batch(job: Job) -> None:
    with _app(job) as app:
        _receive(_send(app, job, 0), 0)

        def work() -> None:
            results = [_send(app, job, number) for number in range(job.requests)]
            for number, result in enumerate(results):
                _receive(result, number)

        time_batch(work)


if __name__ == "__main__":
    serve(
        {
            "sequential": lambda job: call_in_turn(job, _opened(job)),
            "threads": lambda job: call_in_threads(job, lambda: _opened(job), shared=True),
            "client_each": lambda job: call_in_threads(job, lambda: _opened(job), shared=False),
            "batch": _batch,
            "async_batch": _batch,  # it has no asyncio
        }
    )
