"""Small things for living on loops."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from typing import TYPE_CHECKING

import pytest

from sandai.op.aio import AsyncOperatorClient
from sandai.op.aio._turns import PerLoop, spawn

if TYPE_CHECKING:
    from conftest import RespServer


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks begin in the next turn before 3.12")
def test_eager_tasks(server: RespServer) -> None:
    """Where the application's tasks begin at once, submissions of a turn go out together still."""

    async def main() -> None:
        if sys.version_info >= (3, 12):  # for mypy, which checks 3.11
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with AsyncOperatorClient("op", "v1", server.url) as client:
            handles = await asyncio.gather(*(client.async_call([], {}) for _ in range(50)))
            assert len({handle.task_id for handle in handles}) == 50
            assert not any(await asyncio.gather(*(handle.ready() for handle in handles)))
            await client.batch_collect(await client.batch_submit([([], {})] * 5), timeout=0.1)

    asyncio.run(main())
    pushes = [command for command in server.commands if command[0] == b"LPUSH"]
    assert [len(command) - 2 for command in pushes] == [50, 5]


def test_ours_begin_a_turn_later() -> None:
    """Whatever makes the loop's tasks, what a task of ours needs is there when it begins."""
    seen: list[int] = []

    async def work() -> None:
        seen.append(len(seen))

    async def main(eager: bool) -> None:
        loop = asyncio.get_running_loop()
        if eager and sys.version_info >= (3, 12):
            loop.set_task_factory(asyncio.eager_task_factory)
        before = len(seen)
        task = spawn(work(), "test")
        assert len(seen) == before
        await task
        assert len(seen) == before + 1
        assert task.get_name() == "sandai-op-test"

    asyncio.run(main(False))
    asyncio.run(main(True))


def test_per_loop() -> None:
    """What was found last is kept, for its loop and its owner, and neither loop nor more."""
    made = []

    def find(owner: str) -> tuple[str, int]:
        made.append(owner)
        return owner, len(made)

    known: PerLoop[str, tuple[str, int]] = PerLoop(find)
    loops = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        for _ in range(3):
            assert known.of("a") == ("a", len(made))

    asyncio.run(main())
    assert made == ["a"]
    asyncio.run(main())
    assert made == ["a", "a"]

    async def another() -> None:
        assert known.of("b") == ("b", 3)
        assert known.of("a") == ("a", 4)

    asyncio.run(another())
    gc.collect()
    assert [loop() for loop in loops] == [None, None]
