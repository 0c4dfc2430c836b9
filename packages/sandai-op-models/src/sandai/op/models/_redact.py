"""Keep secrets out of everything that a person or a log may read."""

import re
from collections.abc import Mapping, Set
from typing import Any

from ._text import text

MASK = "**"

# Where a password may begin: after ``scheme://user:``, after ``scheme://`` (a token in the user's
# place), or after the first colon of a URL that lost its scheme.
_BEFORE_PASSWORD = re.compile(r"://[^:@]*:|://|:(?=\S)")
# The lookahead and the possessive name keep this linear in the text's length.
_NAMED = re.compile(
    r"(?P<name>(?<![\w\-])"
    r"(?=[\w\-]*?(?:pass(?:word|wd|phrase)|pwd|secret|token(?!s)|credential|api_?key))"
    r"[\w\-]++['\"]?\s*[=:]\s*)"
    r"(?P<secret>(?=[^\s&])(?:[bru]?(?P<quote>['\"])(?:(?!(?P=quote))[^\\]|\\.)*(?P=quote))?"
    r"[^\s&]*?(?=,?(?:[\s&]|\Z)))",
    re.IGNORECASE | re.DOTALL,
)
# Of values nested deeper, or in a cycle, nothing is shown.
_MAX_DEPTH = 50


def redact(value: Any) -> Any:
    """
    Return *value* with the passwords of URLs and options masked by ``**``.

    Strings are rewritten; mappings, lists, tuples and sets are copied with
    every string inside them rewritten and every value under a name like
    ``password`` or ``token`` masked. Anything else is returned as it is, or as
    its redacted ``repr`` where that holds a secret.
    """
    return _redacted(value, 0)


def _redacted(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return _redacted_text(value)
    if isinstance(value, bytes | bytearray):
        return _redacted_text(value.decode("utf-8", "replace"))
    if depth > _MAX_DEPTH:
        return MASK
    if isinstance(value, Mapping):
        return {
            _redacted(key, depth + 1): MASK if _is_secret(key, item) else _redacted(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, tuple):
        return tuple(_redacted(item, depth + 1) for item in value)
    if isinstance(value, list | Set):
        return [_redacted(item, depth + 1) for item in value]
    shown = text(value, repr)
    masked = _redacted_text(shown)
    return value if masked == shown else masked


def _redacted_text(value: str) -> str:
    # An unquoted password may hold any character, so the last "@" of the text ends it: of several
    # URLs in a text more is masked than need be, never less. For the same reason an "@" in a named
    # secret stays where it is until then.
    value = _NAMED.sub(_mask_named, value)
    userinfo, at, rest = value.rpartition("@")
    before = _BEFORE_PASSWORD.search(userinfo)
    return f"{userinfo[: before.end()]}{MASK}@{rest}" if at and before else value


def _mask_named(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    return f"{match['name']}{quote}{MASK}{'@' if '@' in match['secret'] else ''}{quote}"


def _is_secret(key: object, item: object) -> bool:
    named = isinstance(key, str) and _NAMED.search(f"{key}=x") is not None
    return named and item is not None and not isinstance(item, bool)
