"""JSON that every reader takes, of whatever an operator answered."""

import json
import math
from collections.abc import Mapping
from typing import Any

_DEEPEST = 200


def dumps(value: Any, *, indent: int | None = None) -> str:
    """
    Return JSON, in characters that UTF-8 has.

    What JSON cannot say is said in a text: bytes, NaN, what is nested too deeply.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_plain(value, 0), ensure_ascii=False, allow_nan=False, indent=indent)
    # Halves of surrogate pairs become their escapes, which are JSON.
    return text.encode("utf-8", "backslashreplace").decode()


def no_constant(name: str) -> Any:
    """Refuse what Python's parser takes and JSON has not: NaN, Infinity."""
    raise ValueError(f"{name} is no JSON")


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if depth > _DEEPEST:
        return "..."
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    return repr(value)[:2000]


def _key(key: Any) -> str:
    plain = _plain(key, 0)
    return plain if isinstance(plain, str) else json.dumps(plain)
