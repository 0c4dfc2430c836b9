"""The libraries that extras bring: looked for where a setting asks for one, never before."""

from importlib import import_module

from sandai.op.models import ConfigurationError

#: By extra: the module that is imported, and what people call the library.
_LIBRARIES = {
    "otel": ("opentelemetry.metrics", "OpenTelemetry's API"),
    "schema": ("jsonschema", "the jsonschema library"),
}


def check_extra(extra: str, setting: str) -> None:
    """Raise :class:`ConfigurationError` where the library that a *setting* needs is missing."""
    module, library = _LIBRARIES[extra]
    try:
        import_module(module)
    except ImportError as error:
        install = f"pip install 'sandai-op-client[{extra}]' (or 'sandai-op-aio[{extra}]')"
        raise ConfigurationError(setting, True, f"needs {library}: {install}") from error
