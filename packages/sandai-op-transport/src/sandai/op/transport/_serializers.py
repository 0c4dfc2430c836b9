"""kombu's serializers: which are accepted, and how a task's body is encoded."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgpack
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, registry

from sandai.op.models import ConfigurationError, InvalidTaskError

DEFAULT_ACCEPT = ("json", "msgpack")


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
    *kwargs* that the serializer cannot encode.
    """
    try:
        return _encode(body, serializer)
    except (EncodeError, RecursionError, ValueError, TypeError, OverflowError) as error:
        path = _unencodable(kwargs, lambda value: _encode(value, serializer))
        if path.startswith("artifacts"):
            path = f"input_{path}"  # what the caller knows them as
        reason = str(error) or type(error).__name__
        raise InvalidTaskError(path, f"{serializer} cannot encode it: {reason}") from error


def _encode(value: object, serializer: str) -> tuple[str, str, Any]:
    content_type, encoding, payload = dumps(value, serializer=serializer)
    if serializer == "msgpack":
        # What msgpack packs it does not always unpack: keys that are no strings.
        # A worker would reject the message, and the caller wait in vain.
        msgpack.unpackb(payload, raw=False)
    return content_type, encoding, payload


def _unencodable(
    value: Any, encode: Callable[[Any], object], path: str = "", depth: int = 0
) -> str:
    """Return the path of the innermost part of *value* that cannot be encoded."""
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        parts = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    if depth < 50:
        for name, item in parts:
            try:
                encode(item)
            except Exception:
                return _unencodable(item, encode, name, depth + 1)
    return path or "options"
