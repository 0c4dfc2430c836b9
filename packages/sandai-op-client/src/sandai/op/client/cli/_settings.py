"""The client's settings as flags of every command: one table, from which all else is made."""

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import frozen
from click.core import ParameterSource

from sandai.op.models import VALID_PRIORITIES
from sandai.op.transport import ClientArguments

if TYPE_CHECKING:
    Kind = click.ParamType[Any]  # generic since click 8.5
else:
    Kind = click.ParamType
F = TypeVar("F", bound=Callable[..., Any])
PREFIX = "SANDAI_OPERATOR_"


class Names(Kind):
    """Names with commas between them."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Split them."""
        if isinstance(value, list):
            return value
        return [name.strip() for name in str(value).split(",") if name.strip()]


class JsonObject(Kind):
    """A JSON object."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Parse it."""
        if isinstance(value, dict):
            return value
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('a JSON object was expected, like {"socket_timeout": 5}', param, ctx)
        return parsed


class Seconds(click.FloatRange):
    """A finite number of seconds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Refuse what nobody can wait for."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


@frozen
class Setting:
    """One setting of the client."""

    name: str
    kind: Kind | type
    help: str
    #: The variable, without its prefix, that the client itself reads.
    variable: str | None = None

    @property
    def flag(self) -> str:
        """The flag's name."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def environment_variable(self) -> str:
        """The variable that sets it, for the command."""
        return PREFIX + (self.variable or self.name.upper())

    def option(self) -> "SettingOption":
        """Return the flag."""
        declaration = self.flag
        more: dict[str, Any] = {}
        if self.kind is bool:
            declaration += f"/--no-{self.name.replace('_', '-')}"
            # Not a plain False: whether it was given must be seen.
            more["default"] = None
        return SettingOption(
            [declaration, self.name],
            type=self.kind,
            help=f"{self.help} [env: {self.environment_variable}]",
            # What the client reads itself is left to it: a broker that is given as a flag and
            # a backend of the environment do not belong together.
            envvar=None if self.variable else self.environment_variable,
            **more,
        )


class SettingOption(click.Option):
    """A flag that is shown among the client's settings."""


_URL = "redis://, rediss://, redis+socket://, sentinel://, or another that kombu or Celery know"
SETTINGS = (
    Setting("broker_url", str, f"Where tasks go: {_URL}.", "CELERY_BROKER_URL"),
    Setting(
        "result_backend",
        str,
        "Where answers are read; the broker's URL unless said.",
        "CELERY_RESULT_BACKEND",
    ),
    Setting("timeout", float, "Seconds to wait for an answer; 0: no limit, no deadline."),
    Setting("priority", click.Choice(VALID_PRIORITIES), "The queue that tasks go to."),
    Setting("cancel_key", str, "A key under which the operator can be told to skip the task."),
    Setting("auto_forget_result", bool, "Delete a result once it is read.", "AUTO_FORGET_RESULT"),
    Setting("task_serializer", str, "How tasks are written.", "CELERY_TASK_SERIALIZER"),
    Setting("result_serializer", str, "How results are read first.", "CELERY_RESULT_SERIALIZER"),
    Setting("accept_content", Names(), "Serializers that may be used at all, as json,msgpack."),
    Setting("broker_pool_limit", int, "Most connections to the broker.", "BROKER_POOL_LIMIT"),
    Setting("backend_pool_limit", int, "Most connections to the backend.", "BACKEND_POOL_LIMIT"),
    Setting(
        "backend_poll_concurrency",
        int,
        "Most of those for commands at once.",
        "BACKEND_POLL_CONCURRENCY",
    ),
    Setting(
        "pool_acquire_timeout",
        float,
        "Seconds to wait for a free connection.",
        "POOL_ACQUIRE_TIMEOUT",
    ),
    Setting("io_timeout", float, "Seconds for connecting, and for each command."),
    Setting(
        "submit_retries", int, "How often a failed submission is tried again.", "SUBMIT_RETRIES"
    ),
    Setting(
        "shared_transport_scope",
        click.Choice(["operator", "process"]),
        "Who shares connections.",
        "SHARED_TRANSPORT_SCOPE",
    ),
    Setting("broker_transport_options", JsonObject(), "The broker's options, as Celery's."),
    Setting("result_backend_transport_options", JsonObject(), "The backend's, as Celery's."),
    Setting(
        "cancel_on_timeout", bool, "Revoke what was not answered in time.", "CANCEL_ON_TIMEOUT"
    ),
    Setting("validate_options", bool, "Check options before they are sent.", "VALIDATE_OPTIONS"),
    Setting("tracing", bool, "Trace with OpenTelemetry.", "TRACING"),
    Setting("metrics", bool, "Measure with OpenTelemetry.", "METRICS"),
    Setting("debug", bool, "Log each step to the standard error."),
)


def arguments_of(given: dict[str, Any]) -> ClientArguments:
    """Take the client's arguments out of a command's; what was not given is left to the client."""
    taken = {setting.name: given.pop(setting.name, None) for setting in SETTINGS}
    arguments: ClientArguments = {}
    arguments.update({name: value for name, value in taken.items() if value is not None})  # type: ignore[typeddict-item]  # the test compares the names
    return arguments


def with_settings(command: F) -> F:
    """Add the client's settings to a command."""
    for setting in reversed(SETTINGS):
        params = command.__dict__.setdefault("__click_params__", [])
        params.append(setting.option())
    return command


def flag_of(name: str) -> str | None:
    """Return how a setting was given on this command line; ``None`` if it was not."""
    context = click.get_current_context(silent=True)
    if context is None or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
        return None
    return next((setting.flag for setting in SETTINGS if setting.name == name), None)


class Command(click.Command):
    """A command whose help shows the client's settings last, in a section of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write two sections."""
        own: list[tuple[str, str]] = []
        settings: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                (settings if isinstance(param, SettingOption) else own).append(record)
        _section(formatter, "Options", own)
        _section(formatter, "Client settings", settings)


def _section(
    formatter: click.HelpFormatter, title: str, records: Sequence[tuple[str, str]]
) -> None:
    if records:
        with formatter.section(title):
            formatter.write_dl(records)
