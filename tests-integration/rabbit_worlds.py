"""The scripted operator on RabbitMQ, and the scenarios' worlds that lead to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import frozen

import scripted_operator
from asyncio_world import AsyncioWorld
from celery_worker import PRIORITIES, CeleryWorker
from queues import RabbitQueues
from thread_world import ThreadWorld
from watching import open_redis

AnyWorld = ThreadWorld | AsyncioWorld
WORLDS = [ThreadWorld, AsyncioWorld]
WORLD_IDS = ["threads", "asyncio"]


@frozen
class Roads:
    """The URLs that lead to an operator and back; Redis is what it is scripted by."""

    broker_url: str
    result_backend: str
    redis_url: str

    @property
    def settings(self) -> dict[str, Any]:
        """A client's settings."""
        return {"broker_url": self.broker_url, "result_backend": self.result_backend}

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run a worker of the scripted operator for the ``with`` block."""
        environment = {
            "SCRIPTED_OPERATOR_URL": self.redis_url,
            "SCRIPTED_OPERATOR_BROKER_URL": self.broker_url,
            "SCRIPTED_OPERATOR_RESULT_BACKEND": self.result_backend,
        }
        operator = (scripted_operator.NAME, scripted_operator.VERSION)
        with CeleryWorker("scripted_operator", *operator, environment=environment):
            yield

    @contextmanager
    def world(self, kind: type[AnyWorld]) -> Iterator[AnyWorld]:
        """Give clients of one colour, and an empty database and no queues of ``nobody``."""
        queues = RabbitQueues(self.broker_url)
        with open_redis(self.redis_url) as redis_client:
            redis_client.flushdb()
            for priority in PRIORITIES:
                queues.delete(f"{priority}.nobody.v1")
            urls = {"result_backend": self.result_backend}
            with kind(self.broker_url, redis_client, queues, **urls) as world:
                yield world
