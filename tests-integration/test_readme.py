"""The README's snippets, run as they stand: its operator, and its application against it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from celery_worker import CeleryWorker, without_celery_variables
from local_redis import LocalRedis

README = Path(__file__).parents[1] / "README.md"


def test_quick_starts(redis_server: LocalRedis, database: str, tmp_path: Path) -> None:
    """The operator's ten lines answer every piece of the application's quick start."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    [operator] = [snippet for snippet in snippets if "process_task" in snippet]
    application = "\n".join(snippet for snippet in snippets if snippet is not operator)
    stated = "redis://localhost:6379/0"
    assert stated in operator
    (tmp_path / "counter.py").write_text(operator.replace(stated, database))
    with CeleryWorker("counter", "line-counter", "v1", environment={}, folders=[tmp_path]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", application],
            env=without_celery_variables(os.environ)
            | {"SANDAI_OPERATOR_CELERY_BROKER_URL": database},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "FileNotFoundError" in done.stdout
    assert "success" in done.stdout
