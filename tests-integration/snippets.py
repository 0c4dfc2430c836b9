"""
The code on a page of Markdown: what is a file, what is run, and what it is said to print.

A ``python`` block is run; one whose first line is ``# name.py`` is written to that file instead,
and so is a ``{code-block}`` whose caption is a file's name. Of a ``console`` block the lines after
``$`` are commands and the others what they print; without any ``$`` each line is a command. A
``text`` block right after a block is what that one prints; ``…`` stands for anything in a line, and
alone in its line for any lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import evolve, frozen

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)")
_SETTINGS = re.compile(r"(?:<!--|%) *snippets: *(?P<settings>.*?) *(?:-->|$)", re.MULTILINE)
_CODE = re.compile(r"\{code(?:-block)?\} *(?P<language>\S*)")
_OPTION = re.compile(r":(?P<name>[\w-]+):(?P<value>.*)")
_FILE_COMMENT = re.compile(r"# (?P<name>[\w/]+\.py)")
_FILE_NAME = re.compile(r"[\w/-]+\.\w+")
_MISSPELT = {"py", "python3", "pycon", "ipython", "bash", "sh", "shell"}


@frozen
class Block:
    """A fenced block: its first line's number in the page, its language, its lines."""

    line: int
    language: str
    lines: tuple[str, ...]
    caption: str = ""
    #: What it prints, where the page shows that.
    shown: str | None = None

    @property
    def text(self) -> str:
        """Its lines."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def file(self) -> str | None:
        """The file that it is to be written to."""
        if _FILE_NAME.fullmatch(self.caption):
            return self.caption
        if self.language == "python" and self.lines:
            found = _FILE_COMMENT.fullmatch(self.lines[0])
            return found and found["name"]
        return None

    def commands(self) -> Iterator[Command]:
        """Yield the commands of a ``console`` block."""
        prompted = any(line.startswith("$ ") for line in self.lines)
        command: list[str] = []
        printed: list[str] = []
        for line in self.lines:
            if command and command[-1].endswith("\\"):
                command[-1] = command[-1][:-1]
                command.append(line.removeprefix("> "))
            elif prompted and not line.startswith("$ "):
                printed.append(line)
            elif line.strip():
                if command:
                    yield Command("".join(command), "\n".join(printed) or None)
                command, printed = [line.removeprefix("$ ")], []
        if command:
            yield Command("".join(command), "\n".join(printed) or self.shown)


@frozen
class Command:
    """What is typed at a shell's prompt, and what it prints, where the page shows that."""

    text: str
    shown: str | None


@frozen
class Page:
    """A page's blocks, and what it says that they need: ``<!-- snippets: redis -->``."""

    path: Path
    settings: frozenset[str]
    blocks: tuple[Block, ...]

    def runnable(self) -> Iterator[Block]:
        """Yield the blocks that are run, or are typed at a prompt."""
        return (block for block in self.blocks if block.language in {"python", "console"})


def read(path: Path) -> Page:
    """Read a page."""
    text = path.read_text("utf-8")
    found = _SETTINGS.search(text)
    settings = re.split(r", *", found["settings"]) if found else []
    return Page(path, frozenset(settings), tuple(_blocks(text.splitlines(), 1)))


def agrees(shown: str, printed: str) -> bool:
    """Say whether what was printed is what the page shows."""
    pattern = ""
    for line in shown.strip().splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(map(re.escape, line.rstrip().split("…"))) + r" *\n"
    return re.fullmatch(pattern, printed.strip() + "\n") is not None


def _blocks(lines: Sequence[str], number: int) -> Iterator[Block]:
    """Yield the blocks of *lines*, of which the first is the page's line *number*."""
    last: Block | None = None
    position = 0
    while position < len(lines):
        opening = _FENCE.fullmatch(lines[position])
        if opening is None:
            if lines[position].strip() and last is not None:
                yield last
                last = None
            position += 1
            continue
        end = _end(lines, position, opening["ticks"])
        inside = [line.removeprefix(opening["indent"]) for line in lines[position + 1 : end]]
        first = number + position + 1
        info = opening["info"].strip()
        position = end + 1
        if last is not None and info == "text":
            last = evolve(last, shown="\n".join(inside))
            continue
        if last is not None:
            yield last
            last = None
        if info.startswith("{") and not _CODE.match(info):
            if info != "{eval-rst}":
                yield from _blocks(inside, first)  # a note, with code in it
        else:
            last = _block(first, info, inside)
    if last is not None:
        yield last


def _block(first: int, info: str, inside: list[str]) -> Block:
    caption = ""
    if directive := _CODE.match(info):
        language = directive["language"]
        while inside and (option := _OPTION.fullmatch(inside[0])):
            caption = option["value"].strip() if option["name"] == "caption" else caption
            inside, first = inside[1:], first + 1
    else:
        language = info.partition(" ")[0]
    assert language not in _MISSPELT, f"line {first}: say python, or console, not {language}"
    return Block(first, language, tuple(inside), caption)


def _end(lines: Sequence[str], position: int, ticks: str) -> int:
    for end in range(position + 1, len(lines)):
        closing = lines[end].strip()
        if closing.startswith(ticks) and not closing.strip("`"):
            return end
    raise AssertionError(f"the block of line {position + 1} does not end")
