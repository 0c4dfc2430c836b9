"""The async names, with what the older distribution took; imported when they are asked for."""

from typing import Any

from sandai.op import aio

from ._legacy import without_ignored


class AsyncOperatorClient(aio.AsyncOperatorClient):
    """The asyncio client, with the older one's ignored arguments still taken."""

    def __init__(
        self, operator_name: str, operator_version: str, *args: Any, **kwargs: Any
    ) -> None:
        without_ignored(kwargs, stacklevel=3)
        super().__init__(operator_name, operator_version, *args, **kwargs)


def create_async_client(
    operator_name: str, operator_version: str, **kwargs: Any
) -> AsyncOperatorClient:
    """Return an :class:`AsyncOperatorClient`; *kwargs* are its arguments."""
    without_ignored(kwargs, stacklevel=3)
    return AsyncOperatorClient(operator_name, operator_version, **kwargs)


AsyncSubmittedTask = aio.AsyncSubmittedTask
AsyncTaskHandle = aio.AsyncTaskHandle
