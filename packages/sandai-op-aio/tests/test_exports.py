"""The public surface."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import sandai.op.aio
from sandai.op.aio import AsyncOperatorClient

CALLS = """
    async_call sync desc batch_submit batch_collect batch_sync_detailed batch_async batch_sync ping
    probe get_queue_info aclose attach operator_name operator_version config timeout debug priority
    cancel_key auto_forget_result task_name queue_names broker_url result_backend celery_app
"""


def test_all_is_sorted_and_whole() -> None:
    """Every name exists, has a docstring, and the contract's are there."""
    names = sandai.op.aio.__all__
    assert len(names) == len(set(names))
    assert all(getattr(sandai.op.aio, name).__doc__ for name in names)
    assert {
        "AsyncOperatorClient",
        "AsyncSubmittedTask",
        "AsyncTaskHandle",
        "BatchTaskResult",
        "ClientClosedError",
        "HealthCheckResult",
        "TaskTimeoutError",
        "create_async_client",
    } <= set(names)


def test_calls() -> None:
    """The contract's calls are all there."""
    for name in CALLS.split():
        assert hasattr(AsyncOperatorClient, name) or name == "config", name


def test_importing_does_nothing_else() -> None:
    """No thread, no current app, no loop, nothing of the client for threads."""
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
    assert len({version(f"sandai-op-{name}") for name in ("models", "transport", "aio")}) == 1
