"""What a person types, as artifacts and options."""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ._json import no_constant

_SLOT = re.compile(r"[A-Za-z_][\w.\-]*\Z")
_EXAMPLE = '{"uri": "s3://bucket/a.mp4", "slot": "video"}'


def artifact_of(text: str) -> dict[str, Any]:
    """
    Read ``URI`` or ``URI:slot``.

    What follows the last colon is the slot if it is a name: it begins with a letter or ``_``
    and goes on with letters, digits, ``_``, ``-`` and ``.``. So ports and paths are none.
    Raises :class:`click.UsageError`.
    """
    uri, colon, slot = text.rpartition(":")
    if not colon or not _SLOT.match(slot):
        uri, slot = text, ""
    if not uri.strip():
        raise click.UsageError(f"--input {text!r}: the URI is missing; write URI or URI:slot")
    return {"uri": uri, "slot": slot}


def artifacts_of(texts: Iterable[str], documents: Iterable[str]) -> list[dict[str, Any]]:
    """Return the artifacts of ``--input`` and ``--input-json``; raises :class:`UsageError`."""
    artifacts = [artifact_of(text) for text in texts]
    for document in documents:
        parsed = _parsed("--input-json", document)
        several = parsed if isinstance(parsed, list) else [parsed]
        if not all(isinstance(each, dict) for each in several):
            raise click.UsageError(f"--input-json: an object like {_EXAMPLE}, or a list of them")
        artifacts += several
    return artifacts


def options_of(pairs: Iterable[str], document: str | None) -> dict[str, Any]:
    """
    Return the options of ``--options-json``, and over them those of ``--option``.

    Raises :class:`click.UsageError`.
    """
    options = _document(document) if document is not None else {}
    seen: set[str] = set()
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(
                f"--option {pair!r}: write name=value, like --option start=1.5 or "
                "--option codec=h264"
            )
        if name in seen:
            raise click.UsageError(
                f"--option {name!r} is given twice; a list is one value: --option '{name}=[1, 2]'"
            )
        seen.add(name)
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """Return what JSON makes of a text, and the text itself where it is none."""
    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        return text


def _document(text: str) -> dict[str, Any]:
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--options-json {text}: {error}") from None
    parsed = _parsed("--options-json", text)
    if not isinstance(parsed, dict):
        raise click.UsageError(
            "--options-json: an object was expected, like '{\"start\": 1.5}', "
            f"not {type(parsed).__name__}"
        )
    return parsed


def _parsed(option: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{option}: not JSON: {error}") from None
