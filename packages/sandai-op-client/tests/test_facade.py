"""The older import path."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import sandai.operator_client as facade
from sandai.op import client
from sandai.op.models import VALID_PRIORITIES, OperatorError

if TYPE_CHECKING:
    from conftest import World

ASYNC_NAMES = [
    "AsyncOperatorClient",
    "AsyncSubmittedTask",
    "AsyncTaskHandle",
    "create_async_client",
]


def test_all_is_exactly_this() -> None:
    """The older names, and the errors that are new."""
    assert set(facade.__all__) == {
        "VALID_PRIORITIES",
        "BatchProcessingError",
        "BatchTaskResult",
        "ClientClosedError",
        "ClientConfig",
        "ClientPoolTimeoutError",
        "ConfigurationError",
        "ErrorInfoDict",
        "HealthCheckResult",
        "InputArtifactDict",
        "InvalidPriorityError",
        "InvalidResultFormatError",
        "InvalidTaskError",
        "InvalidTaskStatusError",
        "LegacyBatchTasks",
        "LegacyTaskResult",
        "OperatorClient",
        "OperatorConnectionError",
        "OperatorDescription",
        "OperatorError",
        "OperatorTaskResult",
        "SubmittedTask",
        "TaskCancelledError",
        "TaskDeadlineExceededError",
        "TaskExecutionError",
        "TaskMetaDict",
        "TaskPayloadDict",
        "TaskTimeoutError",
        "create_client",
    }
    assert all(hasattr(facade, name) for name in facade.__all__)
    assert set(facade.VALID_PRIORITIES) == set(VALID_PRIORITIES)


def test_a_star_import_needs_no_asyncio_client() -> None:
    """In a fresh interpreter that could not import it."""
    code = (
        "import sys; sys.modules['sandai.op.aio'] = None\n"
        "from sandai.operator_client import *\n"
        "assert OperatorClient and create_client and 'AsyncOperatorClient' not in globals()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("name", ASYNC_NAMES)
def test_async_names_say_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the distribution the error names it."""
    monkeypatch.setitem(sys.modules, "sandai.op.aio", None)
    assert name not in facade.__all__
    assert name not in dir(facade)
    with pytest.raises(ImportError, match="pip install sandai-op-aio"):
        getattr(facade, name)
    with pytest.raises(ImportError, match="pip install sandai-op-aio"):
        exec(f"from sandai.operator_client import {name}")


class FakeAsyncClient:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = (args, kwargs)


@pytest.fixture
def fake_aio(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stand in for the asyncio client, which may not be installed here."""
    aio: Any = types.ModuleType("sandai.op.aio")
    aio.AsyncOperatorClient = FakeAsyncClient
    aio.AsyncSubmittedTask, aio.AsyncTaskHandle = object(), object()
    monkeypatch.setitem(sys.modules, "sandai.op.aio", aio)
    monkeypatch.setattr(sys.modules["sandai.op"], "aio", aio, raising=False)
    monkeypatch.delitem(sys.modules, "sandai.operator_client._legacy_aio", raising=False)
    return aio  # type: ignore[no-any-return]  # it is one


@pytest.mark.parametrize("name", ASYNC_NAMES)
def test_async_names_are_handed_on(name: str, fake_aio: types.ModuleType) -> None:
    """With the distribution they are its own, or on it."""
    found = getattr(facade, name)
    if name == "create_async_client":
        assert isinstance(found("op", "v1"), FakeAsyncClient)
    elif name == "AsyncOperatorClient":
        assert issubclass(found, FakeAsyncClient)
    else:
        assert found is getattr(fake_aio, name)


@pytest.mark.parametrize("name", ["result_backend_max_connections", "thread_safe_mode"])
@pytest.mark.parametrize("make", ["AsyncOperatorClient", "create_async_client"])
def test_async_arguments_without_meaning_warn(
    make: str, name: str, fake_aio: types.ModuleType
) -> None:
    """The async client takes and ignores them too, with a warning at the caller's line."""
    with pytest.warns(DeprecationWarning, match=name) as caught:
        client = getattr(facade, make)("op", "v1", timeout=3, **{name: 1})
    assert caught[0].filename == __file__
    assert client.arguments == (("op", "v1"), {"timeout": 3})


def test_other_names_do_not_exist() -> None:
    """``hasattr`` says no, without importing anything."""
    assert not hasattr(facade, "NoSuchThing")
    assert not hasattr(facade, "__path_of_nothing__")
    with pytest.raises(AttributeError, match="NoSuchThing"):
        _ = facade.NoSuchThing
    assert importlib.import_module("sandai.operator_client") is facade


@pytest.mark.parametrize("name", ["result_backend_max_connections", "thread_safe_mode"])
@pytest.mark.parametrize("make", [facade.OperatorClient, facade.create_client])
def test_arguments_without_meaning_warn(world: World, name: str, make: Any) -> None:
    """They are taken, ignored, and the warning points at the caller."""
    with pytest.warns(DeprecationWarning, match=name) as caught:
        made = make("mem", "v1", broker_url="memory://", result_backend=world.backend, **{name: 1})
    made.close()
    assert isinstance(made, client.OperatorClient)
    assert [warning.filename for warning in caught] == [__file__]


def test_without_them_nothing_warns(world: World) -> None:
    """Positional arguments work as in the older one, and calls are the client's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with facade.OperatorClient("mem", "v1", "memory://", world.backend, 10) as made:
            assert made.sync([], {"n": 1}) == ([], {"n": 1})
        facade.create_client("mem", "v1", thread_safe_mode=None).close()


def test_a_warning_that_is_an_error_leaves_nothing_half_made() -> None:
    """The constructor raises it, and the finalizer has nothing to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning):
            facade.OperatorClient("op", "v1", thread_safe_mode=True)


def test_the_older_error_is_one_of_ours() -> None:
    """For ``except`` clauses, with its fields."""
    error = facade.BatchProcessingError(["a"], 3)
    assert isinstance(error, OperatorError)
    assert (error.failed_tasks, error.total_tasks) == (["a"], 3)
    assert str(error) == "1 of 3 tasks of the batch failed"
