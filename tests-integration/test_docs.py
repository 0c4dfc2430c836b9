"""What the pages say of tests, of settings and of each other is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandai.op.transport import ClientArguments

ROOT = Path(__file__).parents[1]
REFERENCE = re.compile(
    r"`(?:(?P<package>models|transport|client|aio)/)?(?P<file>test_\w+)::(?P<test>\w+)`"
)
"""``test_faults::…`` is of tests-integration, ``client/test_fork::…`` of a package."""


@pytest.mark.parametrize("page", ["reliability", "security", "failure-modes"])
def test_promises_are_held_by_tests_that_exist(page: str) -> None:
    """Every test that a page names is one that pytest runs."""
    references = list(REFERENCE.finditer((ROOT / f"docs/{page}.md").read_text("utf-8")))
    assert references
    missing = [reference[0] for reference in references if not exists(reference)]
    assert not missing, missing


def test_every_setting_has_a_row() -> None:
    """The table of settings, which a page of docs/ includes, has each argument of the clients."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme.partition("<!-- settings -->")[2].partition("<!-- end of the settings -->")[0]
    missing = [name for name in ClientArguments.__annotations__ if f"`{name}`" not in table]
    assert not missing, missing


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/examples/video_clipper/README.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    """Sphinx looks after the pages of docs/; here are those that it does not build."""
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)[)#]", path.read_text("utf-8"))
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing, missing


def test_the_tree_has_every_module() -> None:
    """The architecture names every module of the distributions, and says what it is."""
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    modules = {path.stem for path in ROOT.glob("packages/*/src/**/*.py")}
    modules -= {"__init__", "__main__"}
    assert len(modules) > 100
    assert not [name for name in sorted(modules) if not re.search(rf"\b{name}\b", page)]


def exists(reference: re.Match[str]) -> bool:
    """Look for the test in its file."""
    package = reference["package"]
    folder = f"packages/sandai-op-{package}/tests" if package else "tests-integration"
    path = ROOT / folder / f"{reference['file']}.py"
    return (
        path.exists()
        and re.search(
            rf"^\s*(?:async )?def {reference['test']}\(", path.read_text("utf-8"), re.MULTILINE
        )
        is not None
    )
