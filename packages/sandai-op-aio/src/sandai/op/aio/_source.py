"""The input of a stream: an iterable, or an async one."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterator
from typing import Any

from sandai.op.transport import TaskBuilder


class Source:
    """Read any kind of input; raises :class:`InvalidTaskError` for what is none."""

    def __init__(self, tasks: object) -> None:
        self._async: AsyncIterator[Any] | None = None
        self._plain: Iterator[Any] = iter(())
        if isinstance(tasks, AsyncIterable):
            self._async = aiter(tasks)
        else:
            self._plain = TaskBuilder.iterated(tasks)

    async def next(self) -> Any:
        """Return the next task, or raise :class:`StopAsyncIteration`."""
        if self._async is not None:
            return await anext(self._async)
        try:
            return next(self._plain)
        except StopIteration:
            raise StopAsyncIteration from None

    async def close(self) -> None:
        """Read no more, and close a generator."""
        read, plain = self._async, self._plain
        self._async, self._plain = None, iter(())
        if isinstance(plain, Generator):
            plain.close()
        if isinstance(read, AsyncGenerator):
            await read.aclose()
