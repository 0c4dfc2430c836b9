"""Errors are gone with whoever handled them, and with them all that their tracebacks hold."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from conftest import MakeClient
from light_operator import LightOperator
from sandai.op.models import ClientClosedError, OperatorConnectionError, TaskTimeoutError
from scenarios import ClientView
from watching import eventually

LONG = {"delay": 60}
Wait = Callable[[ClientView], object]
WAITS: list[Wait] = [
    lambda client: client.sync([], LONG),
    lambda client: client.async_call([], LONG).get(),
    lambda client: client.batch_sync_detailed([([], LONG)] * 3),
]


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def fails(call: Callable[[], object], kind: type[Exception]) -> None:
    """Make a call that fails, with an error that is gone then."""
    try:
        call()
    except kind as error:
        kept = weakref.ref(error)
    else:
        raise AssertionError("it did not fail")
    eventually(lambda: kept() is None, within=1)


@pytest.mark.usefixtures("_no_collector")
def test_an_error_is_not_kept(make_client: MakeClient, database: str) -> None:
    """No frame holds the error that it raised: the collector need not come for sockets' sake."""
    with LightOperator(database):
        client = make_client(database)
        handle = client.async_call([], LONG)
        fails(lambda: client.sync([], LONG, timeout=0.05), TaskTimeoutError)
        fails(lambda: handle.get(timeout=0.05), TaskTimeoutError)
        nowhere = make_client("redis://127.0.0.1:1/0")
        fails(lambda: nowhere.sync([], {}), OperatorConnectionError)
        fails(lambda: nowhere.async_call([], {}), OperatorConnectionError)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("wait", WAITS, ids=["sync", "get", "batch"])
def test_the_error_of_a_closed_client_is_not_kept(
    wait: Wait, make_client: MakeClient, database: str
) -> None:
    """Nor does it hold the client that was closed amid a wait."""
    with LightOperator(database):
        client = make_client(database)
        closing = threading.Timer(0.2, client.close)
        closing.start()
        fails(lambda: wait(client), ClientClosedError)
        closing.join()
