"""docs/command-line.md, held to: its examples run, its tables are the command's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from celery_worker import CeleryWorker
from command_line import environment
from local_redis import LocalRedis
from sandai.op.client.cli._errors import MEANINGS
from sandai.op.client.cli._settings import SETTINGS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/command-line.md").read_text("utf-8")
REFUSED = re.compile(r"  # exits with (\d+)$")


def test_examples(redis_server: LocalRedis, database: str, tmp_path: Path) -> None:
    """Every command of the page runs, with the README's operator, and exits as it says."""
    blocks = re.findall(r"```console\n(\$ .*?)```", PAGE, re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]
    assert len(commands) > 10
    snippets = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    [operator] = [snippet for snippet in snippets if "process_task" in snippet]
    (tmp_path / "counter.py").write_text(operator.replace("redis://localhost:6379/0", database))
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with CeleryWorker("counter", "line-counter", "v1", environment={}, folders=[tmp_path]):
        for command in commands:
            stated = REFUSED.search(command)
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment(database, PATH=path),
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
            )
            assert done.returncode == (int(stated[1]) if stated else 0), (command, done)


def test_exit_codes() -> None:
    """The page has every code, with its meaning."""
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows == {str(code.value): meaning for code, meaning in MEANINGS.items()}


def test_settings() -> None:
    """The page has every flag, with its variable."""
    rows = re.findall(r"^\| `(--[\w-]+)` \| `(\w+)` \|$", PAGE, re.MULTILINE)
    assert rows == [(setting.flag, setting.environment_variable) for setting in SETTINGS]
