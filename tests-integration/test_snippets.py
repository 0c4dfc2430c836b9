"""The pages' code, run as it stands, and what it is said to print."""

from __future__ import annotations

from pathlib import Path

import pytest

from page_runner import ROOT, Runner
from snippets import read

FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")]
PAGES = [
    path for path in sorted(FOUND) if "_build" not in path.parts and any(read(path).runnable())
]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> str:
    """Give the URL of an in-process broker, or of an empty Redis to a page that wants one."""
    page = read(request.node.callspec.params["path"])
    if "redis" in page.settings:
        return str(request.getfixturevalue("database"))
    return "memory://"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_a_page(path: Path, broker: str, tmp_path: Path) -> None:
    """Everything on a page runs, in order, without a warning, and prints what the page shows."""
    Runner(read(path), tmp_path, broker).run()


RIGHT = """
Two blocks of one program, one in a note:

```python
seen = 1
```

````{note}
   ```python
   print("seen", seen)
   print("in", 0.25, "s")
   ```
   ```text
   seen 1
   in … s
   ```
````

```python
# greeting.py
print("hello")
print("world")
```

```console
$ python \\
> greeting.py
…
world
$ python -c 'exit(3)'  # exits with 3
$ pip install nothing-of-this
```
"""


def test_a_page_that_is_right(tmp_path: Path) -> None:
    """Blocks share a program, files are written, what is printed is compared."""
    run(RIGHT, tmp_path)


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("```python\n1 / 0\n```", "page.md.*line 2.*ZeroDivisionError"),
        ("```python\nprint(1)\n```\n```text\n2\n```", "shown:\n2\n\nprinted:\n1"),
        ("```console\n$ echo 1\n2\n```", "printed:\n1"),
        ("```console\n$ python -c 'exit(3)'\n```", "ended with 3"),
        ("```console\n$ python -c ''  # exits with 3\n```", "ended with 0"),
        ("```console\n$ frobnicate\n```", "frobnicate to be run"),
        ("```python\n# idle.py\nprint()\n```", "nothing on the page uses"),
        ("```python\nopen('f', 'w')\n```", "ResourceWarning"),
        ("```python\nimport os\nos._exit(0)\n```", "the process ended"),
        ("```py\nprint()\n```", "say python"),
        ("```python\nprint()", "does not end"),
        ("<!-- snippets: oracle -->\n```python\n1\n```", "oracle"),
    ],
)
def test_a_page_that_is_wrong(page: str, wrong: str, tmp_path: Path) -> None:
    """What raises, prints something else, is unknown or unused fails, and says where."""
    with pytest.raises(AssertionError, match=f"(?s){wrong}"):
        run(page, tmp_path)


def run(text: str, tmp_path: Path) -> None:
    """Run a page with this text."""
    path = tmp_path / "page.md"
    path.write_text(text, "utf-8")
    (folder := tmp_path / "folder").mkdir()
    Runner(read(path), folder, "memory://").run()
