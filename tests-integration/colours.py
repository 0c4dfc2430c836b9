"""Both clients in one shape: what is done with them is written once, as coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from celery.result import ResultSet

from sandai.op.aio import AsyncOperatorClient, create_async_client
from sandai.op.client import OperatorClient, create_client

OPERATOR = "soaked"


class Colour(Protocol):
    """How to call a client: the operations are written once, as coroutines."""

    name: str

    def make(self, **settings: Any) -> Any:
        """Make a client."""

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method."""

    async def describe(self, client: Any) -> dict[str, Any]:
        """Ask for the description."""

    async def state(self, handle: Any) -> str:
        """Look at the state."""

    async def close(self, client: Any) -> None:
        """Close."""

    async def get_all(self, handles: Sequence[Any], timeout: float) -> list[Any]:
        """Wait for all of them together."""

    async def pause(self, seconds: float) -> None:
        """Do nothing for a while."""


class Threads:
    """The client for threads: nothing is ever suspended."""

    name = "threads"

    def make(self, **settings: Any) -> OperatorClient:
        """Make a client."""
        return create_client(OPERATOR, "v1", **settings)

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return function(*args, **kwargs)

    async def describe(self, client: OperatorClient) -> dict[str, Any]:
        """Read the property."""
        return client.desc

    async def state(self, handle: Any) -> str:
        """Read the property."""
        return str(handle.state)

    async def close(self, client: OperatorClient) -> None:
        """Close."""
        client.close()

    async def get_all(self, handles: Sequence[Any], timeout: float) -> list[Any]:
        """Wait as Celery does."""
        replies: list[Any] = ResultSet(list(handles)).join(timeout=timeout)
        return replies

    async def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)  # noqa: ASYNC251  # there is no loop


class Loops:
    """The client for asyncio."""

    name = "loops"

    def make(self, **settings: Any) -> AsyncOperatorClient:
        """Make a client."""
        return create_async_client(OPERATOR, "v1", **settings)

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Await it."""
        return await function(*args, **kwargs)

    async def describe(self, client: AsyncOperatorClient) -> dict[str, Any]:
        """Ask."""
        return await client.desc()

    async def state(self, handle: Any) -> str:
        """Look."""
        return str(await handle.state())

    async def close(self, client: AsyncOperatorClient) -> None:
        """Close."""
        await client.aclose()

    async def get_all(self, handles: Sequence[Any], timeout: float) -> list[Any]:
        """Wait in a coroutine each, and for all of them to end."""
        waits = (handle.get(timeout=timeout) for handle in handles)
        ended = await asyncio.gather(*waits, return_exceptions=True)
        for each in ended:
            if isinstance(each, BaseException):
                raise each
        return list(ended)

    async def pause(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)


def run_without_a_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what never suspends."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for a loop")
