"""kombu's serializers: which are accepted, and how a task's body is encoded."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack
from kombu.serialization import dumps, registry

from sandai.op.models import ConfigurationError, InvalidTaskError, protocol

DEFAULT_ACCEPT = ("json", "msgpack")

#: Not as a union: this is asked of every value.
_NESTED = (dict, list, tuple)
_SCALARS = frozenset({str, int, float, bool, type(None)})
#: Of an object that kombu's JSON decoder replaces by what it marks.
_MARKER_KEYS = {"__type__", "__value__"}
#: How deep the path of what cannot be encoded goes.
_MOST_LEVELS = 50


def serializer_names(setting: str, values: object) -> tuple[str, ...]:
    """
    Return serializer names, in order and once each.

    Content types (``application/json``) are turned into names. Raises
    :class:`ConfigurationError` for an unknown or an empty list.
    """
    if values is None:
        return DEFAULT_ACCEPT
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigurationError(setting, values, "must be a list of serializer names")
    names: dict[str, None] = {}
    for value in values:
        if not isinstance(value, str):
            raise ConfigurationError(setting, value, f"must be one of {_known()}")
        name = registry.type_to_name.get(value, value)
        if name not in registry.name_to_type:
            raise ConfigurationError(setting, value, f"must be one of {_known()}")
        names[name] = None
    if not names:
        raise ConfigurationError(setting, values, "must name at least one serializer")
    return tuple(names)


def check_serializer(setting: str, name: str, accepted: tuple[str, ...]) -> None:
    """Raise :class:`ConfigurationError` unless *name* is known and accepted."""
    if name not in registry.name_to_type:
        raise ConfigurationError(setting, name, f"must be one of {_known()}")
    if name not in accepted:
        raise ConfigurationError(
            setting, name, f"is not in accept_content ({', '.join(accepted)}); list it there too"
        )


def _known() -> str:
    return ", ".join(sorted(registry.name_to_type))


def encode_body(kwargs: Mapping[str, Any], body: object, serializer: str) -> tuple[str, str, Any]:
    """
    Return ``(content type, content encoding, bytes or text)`` of a task's body.

    Raises :class:`InvalidTaskError` with the path of the first value in
    *kwargs* that the serializer cannot encode, or that the operator would read
    as something else.
    """
    try:
        return _encode(body, kwargs, serializer)
    except Exception as error:  # also whatever a class of the caller's own raises
        path = _unencodable(kwargs, lambda value: _encode(value, value, serializer))
        if path.startswith("artifacts"):
            path = f"input_{path}"  # what the caller knows them as
        reason = f"{serializer} cannot encode it: {protocol.describe_error(error)}"
        raise InvalidTaskError(path, reason) from error


def _encode(body: object, given: object, serializer: str) -> tuple[str, str, Any]:
    content_type, encoding, payload = dumps(body, serializer=serializer)
    if serializer == "msgpack":
        # What msgpack packs it does not always unpack: keys that are no strings.
        # A worker would reject the message, and the caller wait in vain.
        msgpack.unpackb(payload, raw=False)
    elif serializer == "json":
        _check_json(given)
    return content_type, encoding, payload


def _check_json(value: object) -> None:
    """
    Raise for what JSON carries, but not as it is.

    Keys that are no strings would become some (and 1 and "1" the same); an
    object like kombu's marker would become the value that it marks, or make a
    worker reject the message.
    """
    nested: list[Any] = [value]
    for part in nested:  # which grows meanwhile
        items = part
        if isinstance(part, dict):
            for key in part:
                if type(key) is not str and not isinstance(key, str):
                    raise TypeError(f"the key {protocol.shown(key)} is no string")
            if "__type__" in part and part.keys() == _MARKER_KEYS:
                raise ValueError("kombu takes an object of these two keys for a marked value")
            items = part.values()
        for item in items:
            if type(item) not in _SCALARS and isinstance(item, _NESTED):
                nested.append(item)


def _unencodable(kwargs: Mapping[str, Any], encode: Callable[[Any], object]) -> str:
    """Return the path of the innermost part of *kwargs* that cannot be encoded."""
    path, value = "", kwargs
    above: set[int] = set()
    # The body is around the kwargs; each part is tried at its own depth, which may be
    # what is wrong with it.
    for depth in range(1, _MOST_LEVELS):
        above.add(id(value))
        parts = _parts(value)
        while len(parts) > 1:
            half = parts[: len(parts) // 2]
            parts = half if _fails(half, encode, depth) else parts[len(half) :]
        if not parts or not _fails(parts, encode, depth):
            break
        [(key, value)] = parts
        path += f"[{key}]" if isinstance(key, int) else f".{key}"
        if id(value) in above:
            break  # it contains itself
    return path.removeprefix(".") or "options"


def _parts(value: Any) -> list[tuple[Any, Any]]:
    # Of other mappings no serializer encodes any.
    if isinstance(value, dict):
        keys = (key if type(key) is str else protocol.shown(key) for key in value)
        return list(zip(keys, value.values(), strict=False))
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _fails(parts: list[tuple[Any, Any]], encode: Callable[[Any], object], depth: int) -> bool:
    nested: list[Any] = [item for _, item in parts]
    for _ in range(depth):
        nested = [nested]
    try:
        encode(nested)
    except Exception:
        return True
    return False
