"""The one cattrs converter, and plain values for the wire."""

import math
from collections.abc import Mapping, Set
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, get_origin
from uuid import UUID

import attrs
from cattrs import Converter, IterableValidationError
from cattrs.errors import AttributeValidationNote, ClassValidationError, IterableValidationNote

from ._errors import InvalidTaskError, OperatorError
from ._redact import redact
from ._tasks import PERSISTENT_OUTPUT, Artifact, TaskRequest
from ._text import short, text, type_name

converter = Converter()

#: Wire names that differ from the attributes'.
_WIRE_NAMES = {"tracing": "_tracing"}
#: Attributes that are ours alone.
_LOCAL = {"task_id", "extra"}
#: msgpack packs integers of 64 bits and 511 levels, some of which the reply's envelope needs.
_MAX_INT, _MIN_INT = 2**64 - 1, -(2**63)
_MAX_DEPTH = 256


def _exactly(expected: type, word: str) -> None:
    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, expected):
            raise TypeError(f"{word} was expected, not {type_name(value)}")
        return value

    converter.register_structure_hook(expected, hook)


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"a finite number was expected, not {type_name(value)}")
    return float(value)


def _object(value: Any, _: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"an object was expected, not {type_name(value)}")
    return dict(value)


def _carrier(value: Any, _: Any) -> dict[str, str]:
    # A carrier of the wrong shape must not fail the task that carries it.
    if not isinstance(value, Mapping):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}


def _keeping_unknown_keys(cls: type, *, optional: frozenset[str]) -> None:
    """
    Structure *cls* field by field; what has no field goes to ``extra``.

    Unstructured, the *optional* fields are left out when empty. That goes one
    level deep: :func:`to_plain` does the rest, and knows the path.
    """
    fields = [f for f in attrs.fields(attrs.resolve_types(cls)) if f.name not in _LOCAL]
    by_wire_name = {_WIRE_NAMES.get(f.name, f.name): f for f in fields}

    def structure(value: Any, _: Any) -> Any:
        known: dict[str, Any] = {}
        given = _object(value, None)
        for wire_name, attribute in by_wire_name.items():
            if (item := given.pop(wire_name, None)) is None:
                continue
            try:
                if get_origin(attribute.type) is list and not isinstance(item, list | tuple):
                    raise TypeError(f"a list was expected, not {type_name(item)}")
                known[attribute.name] = converter.structure(item, attribute.type)
            except Exception as error:
                error.add_note(AttributeValidationNote("", wire_name, attribute.type))
                raise ClassValidationError("", [error], cls) from error
        return cls(**known, extra=given)

    def unstructure(value: Any) -> dict[str, Any]:
        wire = {**value.extra}
        for wire_name, attribute in by_wire_name.items():
            item = getattr(value, attribute.name)
            if item is not None and (item or attribute.name not in optional):
                wire[wire_name] = item
        return wire

    converter.register_structure_hook(cls, structure)
    converter.register_unstructure_hook(cls, unstructure)


_exactly(str, "a string")
converter.register_structure_hook(float, _number)
converter.register_structure_hook_func(lambda cls: cls == dict[str, Any], _object)
converter.register_structure_hook_func(lambda cls: cls == dict[str, str], _carrier)
_keeping_unknown_keys(Artifact, optional=frozenset({"meta"}))
_keeping_unknown_keys(TaskRequest, optional=frozenset({"tracing", "cancel_key"}))


def structure_request(kwargs: Mapping[str, Any], *, task_id: str) -> TaskRequest:
    """Structure a task's kwargs; see :meth:`TaskRequest.from_kwargs`."""
    try:
        request: TaskRequest = converter.structure(kwargs, TaskRequest)
    except (ClassValidationError, IterableValidationError, TypeError) as error:
        path, reason = _first_fault(error)
        raise InvalidTaskError(path or "kwargs", reason) from error
    keep = request.meta.get(PERSISTENT_OUTPUT)
    if keep is not None and not isinstance(keep, bool):
        raise InvalidTaskError(
            f"meta.{PERSISTENT_OUTPUT}", f"true or false was expected, not {type_name(keep)}"
        )
    request.task_id = task_id
    return request


def unstructure_request(request: TaskRequest) -> dict[str, Any]:
    """Return a task's kwargs, plain; see :meth:`TaskRequest.to_kwargs`."""
    wire = converter.unstructure(request)
    return {_key(key, "kwargs"): to_plain(item, path=key) for key, item in wire.items()}


def _first_fault(error: BaseException) -> tuple[str, str]:
    """Return the dotted path and the message of the innermost first failure."""
    path = ""
    while isinstance(error, ClassValidationError | IterableValidationError):
        error = error.exceptions[0]
        for note in getattr(error, "__notes__", []):
            if isinstance(note, IterableValidationNote):
                path += f"[{note.index}]"
            elif isinstance(note, AttributeValidationNote):
                path += f".{note.name}" if path else note.name
    return path, str(error) or "is invalid"


def to_plain(value: Any, *, path: str = "value") -> Any:
    """
    Return *value* made of dicts with string keys, lists, strings, numbers,
    booleans and ``None``, which JSON and msgpack both carry.

    attrs classes, enums, paths, UUIDs, decimals, dates, tuples and sets are
    turned; anything else raises :class:`InvalidTaskError` with its path.
    """
    try:
        return _plain(value, path, 0)
    except RecursionError:
        reason = f"is nested more than {_MAX_DEPTH} levels deep, or contains itself"
        raise InvalidTaskError(path, reason) from None


def plain_object(value: Any, *, path: str) -> dict[str, Any]:
    """Return :func:`to_plain` of what must be an object on the wire."""
    plain = to_plain(value, path=path)
    if not isinstance(plain, dict):
        raise InvalidTaskError(path, f"an object was expected, not {type_name(value)}")
    return plain


def plain_objects(values: Any, *, path: str) -> list[dict[str, Any]]:
    """Return :func:`to_plain` of what must be a list of objects on the wire."""
    if not isinstance(values, list | tuple):
        raise InvalidTaskError(path, f"a list was expected, not {type_name(values)}")
    return [plain_object(value, path=f"{path}[{index}]") for index, value in enumerate(values)]


def _plain(value: Any, path: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if depth > _MAX_DEPTH:
        raise RecursionError
    if isinstance(value, Enum):
        return _plain(value.value, path, depth + 1)
    if isinstance(value, str):
        return _string(value, path)
    if isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise InvalidTaskError(path, "an integer beyond 64 bits does not fit msgpack")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidTaskError(path, f"{value} is no JSON number")
        return float(value)
    if isinstance(value, Mapping):
        return {
            _key(key, path): _plain(item, f"{path}.{key}", depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple | Set):
        return [_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, PurePath | UUID | Decimal):
        return _string(str(value), path)
    if isinstance(value, Artifact | TaskRequest):
        return _plain(converter.unstructure(value), path, depth)
    if attrs.has(type(value)):
        return _plain(attrs.asdict(value, recurse=False), path, depth)
    raise InvalidTaskError(path, f"{type_name(value)} cannot be carried by JSON and msgpack")


def error_details(error: OperatorError) -> dict[str, Any]:
    """Return an error's own fields as a plain dict; what cannot travel, as its text."""
    details: dict[str, Any] = {}
    for attribute in getattr(type(error), "__attrs_attrs__", ()):
        item = redact(getattr(error, attribute.name, None))
        try:
            details[attribute.name] = to_plain(item)
        except InvalidTaskError:
            details[attribute.name] = text(item, repr)
    return details


def _key(key: Any, path: str) -> str:
    if isinstance(key, Enum):
        key = key.value
    if not isinstance(key, str):
        raise InvalidTaskError(
            path, f"the key {short(key, repr)} is {type_name(key)}, not a string"
        )
    return _string(key, path)


def _string(value: str, path: str) -> str:
    # JSON can escape half a surrogate pair (an undecodable file name has them); msgpack cannot.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidTaskError(
            path, f"{short(value, repr)} is no text that UTF-8 can encode"
        ) from None
    return str(value)
