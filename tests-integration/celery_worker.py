"""A real Celery worker in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PRIORITIES = ("high", "normal", "low", "very_low")
START_TIMEOUT = 40.0
STOP_TIMEOUT = 5.0
HERE = Path(__file__).parent


def without_celery_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without Celery's own variables, which would lead an app elsewhere."""
    return {name: value for name, value in environment.items() if not name.startswith("CELERY_")}


class CeleryWorker:
    """
    Run ``celery --app=<app> worker`` on the four queues of an operator, in a `pool` of Celery's.

    Entering waits until it is ready; it raises `RuntimeError` with the end of the log when it
    does not become so. `environment` is added to this process's own; `python` is that of an
    environment with another Celery.
    """

    def __init__(
        self,
        app: str,
        name: str,
        version: str,
        *,
        environment: Mapping[str, str],
        folders: Iterable[Path] = (),
        concurrency: int = 8,
        pool: str = "threads",
        python: str = sys.executable,
    ) -> None:
        queues = ",".join(f"{priority}.{name}.{version}" for priority in PRIORITIES)
        self._command = [python, "-m", "celery", f"--app={app}", "worker"]
        self._command += [f"--queues={queues}", "-P", pool, "-c", str(concurrency)]
        self._command += ["--loglevel=INFO", f"--hostname={name}@%h"]
        self._command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        path = [str(HERE), *map(str, folders), os.environ.get("PYTHONPATH", "")]
        self._environment = without_celery_variables(os.environ) | {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            **environment,
        }
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="celery-worker-")
        with Path(self._folder.name, "worker.log").open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder.name,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(self._process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def log(self) -> str:
        """Return what it has logged so far."""
        assert self._folder is not None
        return Path(self._folder.name, "worker.log").read_text("utf-8", "replace")

    def close(self) -> None:
        """Stop the worker and what it started; leaving the ``with`` statement does it."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while " ready." not in self.log():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker does not start:\n{self.log()[-4000:]}")
            time.sleep(0.05)  # its log is all that it tells
