"""Texts of values that may be anything."""

import re
from collections.abc import Callable
from typing import Any

#: Characters that move a terminal's cursor, begin a new line in a log, or reverse what is
#: read: controls, Unicode's line ends, marks of direction; and halves of surrogate pairs.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Of a longer text the beginning and the end are shown, in which our own sentences say most.
_MOST_SHOWN = 2000
_LAST_SHOWN = 400


def text(value: object, show: Callable[[Any], str] = str) -> str:
    """
    Return ``show(value)``, whatever the value, in characters that UTF-8 has.

    A value that cannot say what it is (nested too deeply, a broken ``__str__``,
    an integer of too many digits) is told by its type.
    """
    try:
        said = show(value)
    except Exception:
        said = f"<{type(value).__name__}>"
    return said.encode("utf-8", "backslashreplace").decode()


def type_name(value: object) -> str:
    """Return the name of a value's type, as one who writes JSON has it."""
    return "null" if value is None else type(value).__name__


def printable(said: str) -> str:
    """
    Return a text in one line that neither a terminal nor a log takes for more than text.

    What else it holds is shown as Python would escape it, and of a text of more
    than 2,000 characters only the beginning and the end.
    """
    length = len(said)
    if length <= _MOST_SHOWN:
        said = _escaped(said)
        if len(said) <= _MOST_SHOWN:
            return said
    first = _MOST_SHOWN - _LAST_SHOWN
    # Cut before and after: escapes are longer than what they stand for.
    begin, end = _escaped(said[:first])[:first], _escaped(said[-_LAST_SHOWN:])[-_LAST_SHOWN:]
    return f"{begin} [... of {length} characters ...] {end}"


def _escaped(said: str) -> str:
    if said.isprintable():
        return said
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], said)


def short(value: object, show: Callable[[Any], str] = str) -> str:
    """Return at most 200 characters of :func:`text`."""
    return text(value, show)[:200]
