"""Texts of values that may be anything."""

from collections.abc import Callable
from typing import Any


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
