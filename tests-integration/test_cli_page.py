"""docs/command-line.md, held to: its tables are the command's. Its examples: test_snippets."""

from __future__ import annotations

import re
from pathlib import Path

from sandai.op.client.cli._errors import MEANINGS
from sandai.op.client.cli._settings import SETTINGS

PAGE = (Path(__file__).parents[1] / "docs/command-line.md").read_text("utf-8")


def test_exit_codes() -> None:
    """The page has every code, with its meaning."""
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows == {str(code.value): meaning for code, meaning in MEANINGS.items()}


def test_settings() -> None:
    """The page has every flag, with its variable."""
    rows = re.findall(r"^\| `(--[\w-]+)` \| `(\w+)` \|$", PAGE, re.MULTILINE)
    assert rows == [(setting.flag, setting.environment_variable) for setting in SETTINGS]
