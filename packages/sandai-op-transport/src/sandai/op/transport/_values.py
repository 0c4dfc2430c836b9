"""
What the value of a setting must be, whether an argument or a variable has it.

Each function returns the value, or raises :class:`ConfigurationError` that names the setting.
"""

import math

from sandai.op.models import ConfigurationError

_LONGEST = 31_536_000  # seconds; clocks and sockets do not take just any number
_MOST_RETRIES = 100
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def as_text(setting: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(setting, value, "must be a non-empty string")
    return value.strip()


def as_url(setting: str, value: object) -> str:
    # kombu and Celery look schemes up as they are written.
    scheme, separator, rest = as_text(setting, value).partition("://")
    return (scheme.lower() if separator else scheme) + separator + rest


def as_optional_text(setting: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigurationError(setting, value, "must be a string")
    return value  # as it is: the operator compares it


def as_name(setting: str, value: object) -> str:
    text = as_text(setting, value)
    if text != value or any(
        character.isspace() or not character.isprintable() for character in text
    ):
        raise ConfigurationError(
            setting, value, "must be a name without white space; it is part of the queue's name"
        )
    return text


def as_count(setting: str, value: object) -> int:
    number = _whole(setting, value)
    if number < 1:
        raise ConfigurationError(setting, value, "must be at least 1")
    return number


def as_retries(setting: str, value: object) -> int:
    number = _whole(setting, value)
    if not 0 <= number <= _MOST_RETRIES:
        raise ConfigurationError(setting, value, f"must be from 0 to {_MOST_RETRIES}")
    return number


def _whole(setting: str, value: object) -> int:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise ConfigurationError(setting, value, "must be a whole number") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(setting, value, "must be a whole number")
    return value


def as_duration(setting: str, value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigurationError(setting, value, "must be a number of seconds") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(setting, value, "must be a finite number of seconds")
    if value < 0:
        raise ConfigurationError(setting, value, "must be at least 0 seconds")
    if value > _LONGEST:
        raise ConfigurationError(setting, value, f"must be at most {_LONGEST} seconds (a year)")
    return float(value)


def as_positive_duration(setting: str, value: object) -> float:
    seconds = as_duration(setting, value)
    if seconds == 0:
        raise ConfigurationError(setting, value, "must be more than 0 seconds")
    return seconds


def as_boolean(setting: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE:
        return True
    if isinstance(value, str) and value.lower() in _FALSE:
        return False
    raise ConfigurationError(
        setting, value, "must be one of 1/true/yes/on or 0/false/no/off (or a bool)"
    )


def as_scope(setting: str, value: object) -> str:
    if value not in ("operator", "process"):
        raise ConfigurationError(setting, value, "must be 'operator' or 'process'")
    return str(value)
