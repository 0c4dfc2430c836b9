"""The public surface."""

import inspect
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

import sandai.op.aio
from sandai.op.aio import AsyncOperatorClient, ConfigurationError
from sandai.op.transport import statistics


def test_all_is_sorted_and_whole() -> None:
    """Every name exists, and the contract's are there."""
    names = sandai.op.aio.__all__
    assert names == sorted(names)
    assert all(hasattr(sandai.op.aio, name) for name in names)
    assert {
        "AsyncOperatorClient",
        "AsyncSubmittedTask",
        "AsyncTaskHandle",
        "BatchTaskResult",
        "ClientClosedError",
        "HealthCheckResult",
        "OperatorConnectionError",
        "TaskTimeoutError",
        "create_async_client",
    } <= set(names)


def test_every_public_thing_has_a_docstring() -> None:
    """What is exported says what it is."""
    for name in sandai.op.aio.__all__:
        assert getattr(sandai.op.aio, name).__doc__


def test_what_is_awaited() -> None:
    """Every call is a coroutine but those that only read the configuration, and the streams."""
    calls = {name: getattr(AsyncOperatorClient, name) for name in dir(AsyncOperatorClient)}
    awaited = {
        name
        for name, call in calls.items()
        if inspect.iscoroutinefunction(call) and not name.startswith("_")
    }
    assert awaited == {
        "aclose",
        "async_call",
        "attach",
        "batch_async",
        "batch_collect",
        "batch_submit",
        "batch_sync",
        "batch_sync_detailed",
        "desc",
        "forget",
        "inspect",
        "ping",
        "probe",
        "revoke",
        "sync",
    }


def test_importing_does_nothing_else() -> None:
    """No thread, no loop, no current app, nothing of the threads' client."""
    code = (
        "import threading, sys, logging\n"
        "import sandai.op.aio\n"
        "from celery import _state\n"
        "assert threading.active_count() == 1\n"
        "assert _state._tls.current_app is None and _state.default_app is None\n"
        "assert 'sandai.op.client' not in sys.modules\n"
        "assert not logging.getLogger().handlers\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)


def test_the_distributions_have_one_version() -> None:
    """They are released together."""
    try:
        versions = {version(f"sandai-op-{name}") for name in ("models", "transport", "aio")}
    except PackageNotFoundError:
        pytest.skip("runs from the source tree")
    assert len(versions) == 1


def test_importing_brings_in_no_extra() -> None:
    """Of what the extras bring, nothing is imported but what Celery and redis-py try to."""
    names = "[*sys.modules, *{name.partition('.')[0] for name in sys.modules}]"
    found = []
    for module in ("celery.app.base, redis.asyncio", "sandai.op.aio"):
        code = f"import sys, json\nimport {module}\nprint(json.dumps({names}))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, timeout=30
        )
        found.append(set(json.loads(done.stdout)))
    theirs, ours = found
    extras = {"click", "rich", "opentelemetry", "jsonschema", "prompt_toolkit", "referencing"}
    assert not (ours - theirs) & extras
    assert not {"sandai.op.transport._tracing", "sandai.op.transport._metrics"} & ours


@pytest.mark.parametrize("setting", ["tracing", "metrics"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """A client that is to tell OpenTelemetry says what to install, and takes no lease."""
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    settings: dict[str, Any] = {setting: True}
    with pytest.raises(ConfigurationError, match=r"'sandai-op-aio\[otel\]'"):
        AsyncOperatorClient("op", "v1", "redis://nowhere.invalid", **settings)
    assert not statistics().brokers
