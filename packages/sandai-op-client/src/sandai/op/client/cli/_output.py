"""What is said, and where: text for people, documents for programs, nothing that moves a cursor."""

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from attrs import frozen

from ._json import dumps

#: What JSON leaves as it is and a terminal may not.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def dumped(value: Any, *, indent: int | None = None) -> str:
    """Return JSON that a terminal shows as it stands, in any script."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", dumps(value, indent=indent))


def in_colour(stream: Any) -> bool:
    """Return whether a stream takes colours: a terminal that was not told to have none."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(stream.isatty())


def width_of(stream: Any) -> int | None:
    """Return a terminal's columns; ``None`` for what is none."""
    try:
        return max(20, os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError, AttributeError):
        return None


class Unwritable(Exception):
    """The standard output takes nothing; its cause says why."""


@frozen
class Output:
    """One command's way of saying things."""

    as_json: bool = False

    def document(self, value: Any, *, beside: bool = False) -> None:
        """Write one JSON document; *beside* what else is in the standard output."""
        _write(sys.stderr if beside else sys.stdout, dumped(value))

    def heading(self, text: str, colour: str = "green") -> None:
        """Write a line that stands out."""
        self.line(text, colour=colour, bold=True)

    def line(self, text: str, *, colour: str | None = None, bold: bool = False) -> None:
        """Write lines, folded at the words where that is a terminal."""
        _write(sys.stdout, _styled(sys.stdout, _folded(sys.stdout, text), colour, bold))

    def item(self, mark: str, text: str, *, colour: str | None = None) -> None:
        """Write a line with a mark before it; what is folded stands under the text."""
        folded = _folded(sys.stdout, text, indent=len(mark) + 1)
        _write(sys.stdout, f"{_styled(sys.stdout, mark, colour, True)} {folded.lstrip()}")

    def value(self, value: Any) -> None:
        """Write a value as indented JSON."""
        text = dumped(value, indent=2)
        if in_colour(sys.stdout):
            from rich.console import Console
            from rich.highlighter import JSONHighlighter
            from rich.text import Text

            shown = Text(text)
            JSONHighlighter().highlight(shown)
            # The terminal folds by itself, and copying gives what was there.
            Console(file=sys.stdout).print(shown, soft_wrap=True)
        else:
            _write(sys.stdout, text)

    def note(self, text: str, *, colour: str | None = None) -> None:
        """Tell a person something besides; programs read the standard output."""
        _write(sys.stderr, _styled(sys.stderr, _folded(sys.stderr, text), colour, False))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something is under way, on a terminal."""
        if self.as_json or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True, no_color=not in_colour(sys.stderr))
        with console.status(Text(text, overflow="ellipsis", no_wrap=True)):
            yield


def _folded(stream: Any, text: str, *, indent: int = 0) -> str:
    width = width_of(stream)
    if width is None:
        return text
    blank = " " * indent
    lines = textwrap.wrap(
        text, width - 1, initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False
    )
    return "\n".join(lines)


def _styled(stream: Any, text: str, colour: str | None, bold: bool) -> str:
    return click.style(text, fg=colour, bold=bold or None) if in_colour(stream) else text


def _write(stream: Any, text: str) -> None:
    # In whatever the terminal can show.
    encoding = stream.encoding or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(f"{shown}\n")
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable from error
