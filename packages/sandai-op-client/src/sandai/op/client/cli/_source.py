"""The lines of a batch's input: counted, numbered, and what each of them asks for."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen

from sandai.op.models import InvalidTaskError

from ._json import no_constant

_KEYS = ("artifacts", "options", "id")


@frozen
class Survey:
    """An input file as a whole: its lines that are not blank, its bytes and their SHA-256."""

    lines: int
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Survey":
        """Read a file once; raises :class:`OSError`."""
        digest = hashlib.sha256()
        lines = size = 0
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                size += len(line)
                lines += bool(line.strip())
        return cls(lines, size, digest.hexdigest())


@frozen
class Wanted:
    """A line that asks for a task, or does so wrongly: then with an ``error``."""

    line: int
    artifacts: Any = ()
    options: Any = None
    #: The caller's own name for it, carried to its result.
    key: Any = None
    error: InvalidTaskError | None = None


def wanted_lines(file: BinaryIO | Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line


def parse(number: int, line: bytes) -> Wanted:
    """Read a line: ``{"artifacts": […], "options": {…}, "id": …}``, each of them optional."""
    try:
        told = json.loads(line, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        return _wrong(number, None, f"is not JSON: {error}")
    if not isinstance(told, dict):
        return _wrong(number, None, 'an object was expected: {"artifacts": […], "options": {…}}')
    key = told.get("id")
    if unknown := [name for name in told if name not in _KEYS]:
        return _wrong(number, key, f"unknown field {unknown[0]!r}: use {', '.join(_KEYS)}")
    return Wanted(number, told.get("artifacts", []), told.get("options", {}), key)


def _wrong(number: int, key: Any, reason: str) -> Wanted:
    return Wanted(number, key=key, error=InvalidTaskError(f"line {number}", reason))
