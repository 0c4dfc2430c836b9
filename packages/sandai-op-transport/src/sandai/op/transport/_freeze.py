"""Turn option mappings into hashable values and back."""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from sandai.op.models import ConfigurationError


@frozen
class Frozen:
    """A hashable copy of a mapping, a list or a set, tagged with its kind."""

    kind: str
    items: tuple[Any, ...] | frozenset[Any]


def freeze(setting: str, options: Mapping[str, Any] | None) -> Frozen:
    """
    Return a hashable copy of transport options; ``None`` equals ``{}``.

    Raises :class:`ConfigurationError` for what is no mapping or not hashable.
    """
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise ConfigurationError(
            setting, type(options).__name__, "must be a mapping of options, or None"
        )
    frozen_options = _freeze(setting, options)
    assert isinstance(frozen_options, Frozen)
    return frozen_options


def _freeze(setting: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        items = ((key, _freeze(f"{setting}.{key}", item)) for key, item in value.items())
        return Frozen("dict", frozenset(items))
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return Frozen(kind, tuple(_freeze(setting, item) for item in value))
    if isinstance(value, set | frozenset):
        return Frozen("set", frozenset(value))
    try:
        hash(value)
    except TypeError:
        kind = type(value).__name__
        raise ConfigurationError(setting, kind, f"{kind} cannot be an option") from None
    return value


def thaw(value: Any) -> Any:
    """Return what :func:`freeze` was given, as a fresh copy."""
    if not isinstance(value, Frozen):
        return value
    if value.kind == "dict":
        return {key: thaw(item) for key, item in value.items}
    kinds = {"list": list, "tuple": tuple, "set": set}
    return kinds[value.kind](thaw(item) for item in value.items)
