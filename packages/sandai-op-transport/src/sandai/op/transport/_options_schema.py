"""Options against the operator's own ``options_schema``, by the ``jsonschema`` library."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sandai.op.models import ConfigurationError, InvalidTaskError, protocol, redact

#: Characters of a value, and of a complaint, that are shown.
_MOST_OF_VALUE = 60
_MOST_SHOWN = 300

Check = Callable[[Mapping[str, Any]], None]


def options_check(schema: object) -> Check:
    """
    Return what raises :class:`InvalidTaskError` for options that do not fit *schema*.

    The draft is that of ``$schema``, else the latest; no schema, or an empty one, takes
    everything. Nothing is fetched: a ``$ref`` leads into the schema itself or to a draft of
    JSON Schema. ``format`` says nothing, as the standard has it. Raises
    :class:`ConfigurationError` for what is no schema.
    """
    if schema is None or schema is True or schema == {}:
        return _nothing
    from jsonschema import Draft202012Validator, validators
    from jsonschema.exceptions import best_match
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]  # it has no types

    try:
        if not isinstance(schema, dict | bool):
            raise TypeError(f"it is {type(schema).__name__}, not an object")
        draft: Any = validators.validator_for(schema, default=Draft202012Validator)
        draft.check_schema(schema)
        validator = draft(schema, registry=REGISTRY)
    except Exception as error:
        raise ConfigurationError("validate_options", True, _unfit(error)) from error

    def check(options: Mapping[str, Any]) -> None:
        try:
            fault: Any = best_match(validator.iter_errors(_plain(options)))
        except Exception as error:
            # A reference that leads nowhere, a pattern that is none, a schema without an end.
            raise InvalidTaskError("options", _unfit(error)) from error
        if fault is not None:
            raise InvalidTaskError(_path(fault.absolute_path), _complaint(fault))

    return check


def _nothing(options: Mapping[str, Any]) -> None:
    """Everything fits."""


def _unfit(error: Exception) -> str:
    said = protocol.describe_error(error).splitlines()[0]
    return (
        f"options cannot be checked by the operator's options_schema ({said}); "
        "mend that, or switch validate_options off"
    )


def _plain(value: Any) -> Any:
    """Return a value as an operator will see it: what is a tuple here is a list there."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _path(steps: Iterable[str | int]) -> str:
    return "options" + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps
    )


def _complaint(fault: Any) -> str:
    """Return what the library says; the value that it quotes is shortened, without passwords."""
    if any(redact({step: "any"})[step] != "any" for step in fault.absolute_path):
        # Whatever is under a password's name, however deep: the library may quote any part.
        return f"does not fit the operator's options_schema ({fault.validator})"
    said, whole = str(fault.message), repr(fault.instance)
    shown = repr(redact(fault.instance))
    if len(shown) > _MOST_OF_VALUE:
        shown = f"{shown[:_MOST_OF_VALUE]}..."
    said = said.replace(whole, shown, 1)
    return said if len(said) <= _MOST_SHOWN else f"{said[:_MOST_SHOWN]}..."
