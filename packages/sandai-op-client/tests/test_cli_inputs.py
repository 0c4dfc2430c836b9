"""What a person types: artifacts, options, settings."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sandai.op.client.cli._commands import Target, operator_command
from sandai.op.client.cli._inputs import artifact_of, artifacts_of, options_of
from sandai.op.client.cli._output import Output
from sandai.op.client.cli._settings import PREFIX, SETTINGS
from sandai.op.transport import ClientArguments


@pytest.mark.parametrize(
    ("typed", "uri", "slot"),
    [
        ("file:///a.mp4:video", "file:///a.mp4", "video"),
        ("file:///a.mp4", "file:///a.mp4", ""),
        ("s3://bucket/key", "s3://bucket/key", ""),
        ("s3://bucket/key:in-put.1", "s3://bucket/key", "in-put.1"),
        ("http://host:8080/x", "http://host:8080/x", ""),
        ("http://host:8080", "http://host:8080", ""),
        ("http://host:8080:page", "http://host:8080", "page"),
        ("http://u:p@host/x", "http://u:p@host/x", ""),
        ("a b.txt:text", "a b.txt", "text"),
        ("file:///a:b:c", "file:///a:b", "c"),
        ("file:///12:30", "file:///12:30", ""),
        ("file:///x:", "file:///x:", ""),
    ],
)
def test_uri_and_slot(typed: str, uri: str, slot: str) -> None:
    """The last colon parts them, where a name follows it."""
    assert artifact_of(typed) == {"uri": uri, "slot": slot}


@pytest.mark.parametrize("typed", ["", ":video", " :video"])
def test_no_uri(typed: str) -> None:
    """Without a URI it is no artifact."""
    with pytest.raises(click.UsageError, match=r"--input .*URI:slot"):
        artifact_of(typed)


def test_artifacts_as_json() -> None:
    """The odd ones are written as JSON, one or a list."""
    odd = '{"uri": "urn:isbn:x", "slot": "b"}'
    assert artifacts_of(["a:b"], [odd, f"[{odd}]"]) == [
        {"uri": "a", "slot": "b"},
        *[{"uri": "urn:isbn:x", "slot": "b"}] * 2,
    ]
    for wrong in ("{", "3", "[3]"):
        with pytest.raises(click.UsageError, match="--input-json"):
            artifacts_of([], [wrong])


def test_options() -> None:
    """A value is JSON where it can be, and over the document."""
    typed = ["a=1.5", "b=h264", 'c="1"', "d=[1, 2]", "e=", "f=x=y", "g=NaN", "h=true", "i= 1"]
    assert options_of(typed, '{"a": 0, "z": 0}') == {
        "a": 1.5,
        "b": "h264",
        "c": "1",
        "d": [1, 2],
        "e": "",
        "f": "x=y",
        "g": "NaN",
        "h": True,
        "i": 1,
        "z": 0,
    }


def test_options_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and the standard input have them, too."""
    (tmp_path / "o.json").write_text('{"a": 1}')
    assert options_of([], f"@{tmp_path / 'o.json'}") == {"a": 1}
    monkeypatch.setattr("sys.stdin", io.StringIO('{"b": 2}'))
    assert options_of([], "-") == {"b": 2}


@pytest.mark.parametrize(
    ("pairs", "document", "said"),
    [
        (["start"], None, "write name=value"),
        (["=1"], None, "write name=value"),
        (["a=1", "a=2"], None, "given twice"),
        ([], "{", "--options-json: not JSON"),
        ([], "[1]", "an object was expected"),
        ([], "@/no/such/file", "No such file"),
        ([], '{"a": NaN}', "NaN"),
    ],
)
def test_bad_options(pairs: list[str], document: str | None, said: str) -> None:
    """What is wrong is a usage error that names the option."""
    with pytest.raises(click.UsageError, match=said):
        options_of(pairs, document)


def test_every_setting_has_a_flag() -> None:
    """The table has exactly the client's arguments, in no other spelling."""
    assert {setting.name for setting in SETTINGS} == set(ClientArguments.__annotations__)
    assert len(SETTINGS) == len(ClientArguments.__annotations__)


GIVEN: dict[str, tuple[str, Any]] = {
    "broker_url": ("redis://a/1", "redis://a/1"),
    "result_backend": ("redis://b/1", "redis://b/1"),
    "timeout": ("1.5", 1.5),
    "priority": ("low", "low"),
    "cancel_key": ("k", "k"),
    "task_serializer": ("json", "json"),
    "result_serializer": ("json", "json"),
    "accept_content": ("json, msgpack", ["json", "msgpack"]),
    "broker_pool_limit": ("3", 3),
    "backend_pool_limit": ("3", 3),
    "backend_poll_concurrency": ("3", 3),
    "pool_acquire_timeout": ("1.5", 1.5),
    "io_timeout": ("1.5", 1.5),
    "submit_retries": ("3", 3),
    "shared_transport_scope": ("process", "process"),
    "broker_transport_options": ('{"socket_timeout": 3}', {"socket_timeout": 3}),
    "result_backend_transport_options": ('{"socket_timeout": 3}', {"socket_timeout": 3}),
}


@pytest.fixture
def taken() -> dict[str, Any]:
    """What a command's client would be made with."""
    return {}


@pytest.fixture
def command(taken: dict[str, Any]) -> click.Command:
    """Make a command that does nothing but look at its settings."""

    @operator_command
    def look(target: Target, output: Output) -> None:
        """Look."""
        taken.update(target.arguments)
        taken["config"] = target.config()

    return look


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_flags(command: click.Command, taken: dict[str, Any], setting: Any) -> None:
    """Each flag is the client's argument."""
    runner = CliRunner()
    if setting.kind is bool:
        for flag, value in ((setting.flag, True), (f"--no-{setting.flag[2:]}", False)):
            assert runner.invoke(command, ["n", "v", flag]).exit_code == 0
            assert taken[setting.name] is value
        return
    text, value = GIVEN[setting.name]
    result = runner.invoke(command, ["n", "v", setting.flag, text])
    assert result.exit_code == 0, result.output
    assert taken[setting.name] == value
    assert len(taken) == 2


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_variables(command: click.Command, taken: dict[str, Any], setting: Any) -> None:
    """Each has a variable, which the client reads where it is the client's."""
    text, value = GIVEN.get(setting.name, ("true", True))
    result = CliRunner().invoke(command, ["n", "v"], env={setting.environment_variable: text})
    assert result.exit_code == 0, result.output
    config = taken["config"]
    found = getattr(config, setting.name)
    assert (list(found) if setting.name == "accept_content" else found) == value
    assert (setting.name in taken) is (setting.variable is None)


def test_a_broker_as_a_flag(
    command: click.Command, taken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's backend does not belong to it."""
    monkeypatch.setenv(f"{PREFIX}CELERY_RESULT_BACKEND", "redis://other/2")
    CliRunner().invoke(command, ["n", "v", "--broker-url", "redis://mine/1"])
    assert taken["config"].result_backend == "redis://mine/1"


def test_empty_variables(command: click.Command, taken: dict[str, Any]) -> None:
    """An empty variable is an unset one."""
    env = {setting.environment_variable: "" for setting in SETTINGS}
    assert CliRunner().invoke(command, ["n", "v"], env=env).exit_code == 0
    assert set(taken) == {"config"}


def test_help_has_all_settings_in_a_section(command: click.Command) -> None:
    """And each of them with its variable."""
    text = CliRunner().invoke(command, ["--help"], terminal_width=200).output
    own, settings = text.split("Client settings:")
    assert "--json" in own
    for setting in SETTINGS:
        assert re.search(rf"^  {setting.flag}\b", settings, re.MULTILINE), setting.name
        assert f"[env: {setting.environment_variable}]" in settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--timeout", "soon"], "'--timeout'"),
        (["--priority", "urgent"], "'high', 'normal'"),
        (["--broker-transport-options", "3"], "a JSON object was expected"),
        (["--broker-transport-options", "{"], "not JSON"),
        (["--broker-pool-limit", "many"], "'--broker-pool-limit'"),
    ],
)
def test_values_of_the_wrong_kind(command: click.Command, arguments: list[str], said: str) -> None:
    """They are usage errors, which name the flag."""
    result = CliRunner().invoke(command, ["n", "v", *arguments])
    assert result.exit_code == 2
    assert said in result.output
