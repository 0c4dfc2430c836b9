"""Settings that need a library which an extra brings."""

import sys
from typing import Any

import pytest

from sandai.op.models import ConfigurationError
from sandai.op.transport import resolve


@pytest.mark.parametrize(
    ("setting", "extra", "library"),
    [
        ("validate_options", "schema", "jsonschema"),
        ("tracing", "otel", "opentelemetry.metrics"),
        ("metrics", "otel", "opentelemetry.metrics"),
    ],
)
def test_without_the_library(
    monkeypatch: pytest.MonkeyPatch, setting: str, extra: str, library: str
) -> None:
    """The setting without the library says what to install; without the setting all is well."""
    settings: dict[str, Any] = {setting: True}
    assert getattr(resolve("x", "v1", env={}, **settings), setting) is True
    monkeypatch.setitem(sys.modules, library, None)
    resolve("x", "v1", env={})
    for distribution in ("client", "aio"):
        with pytest.raises(ConfigurationError, match=rf"'sandai-op-{distribution}\[{extra}\]'"):
            resolve("x", "v1", env={}, **settings)
    variable = f"SANDAI_OPERATOR_{setting.upper()}"
    with pytest.raises(ConfigurationError, match=variable) as caught:
        resolve("x", "v1", env={variable: "yes"})
    assert caught.value.setting == variable
