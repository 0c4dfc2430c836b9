"""What every command has: the operator, the settings, ``--json``, a client and its end."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sandai.op.client import ConfigurationError, OperatorClient, OperatorError
from sandai.op.transport import ClientArguments, Config, resolve

from . import _signals
from ._errors import Exit
from ._output import Output
from ._settings import Command, arguments_of, flag_of, with_settings


class Finished(Exception):
    """A command has said all, and exits with this code."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code)
        self.code = code


class Failure(Exception):
    """An error, what the JSON document says besides, and a better sentence for a person."""

    def __init__(
        self, error: OperatorError, context: dict[str, Any], said: str | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.context = context
        self.said = said or str(error)


class Target:
    """The operator that a command is about, and how to reach it."""

    def __init__(self, name: str, version: str, arguments: ClientArguments) -> None:
        self.name = name
        self.version = version
        self.arguments = arguments

    @property
    def described(self) -> dict[str, Any]:
        """The first fields of every document."""
        return {"operator": self.name, "version": self.version}

    @property
    def timeout(self) -> float | None:
        """The timeout that was given, in seconds."""
        return self.arguments.get("timeout")

    def config(self) -> Config:
        """Return what a client is configured with; raises :class:`ConfigurationError`."""
        return resolve(self.name, self.version, env=os.environ, **self.arguments)

    @contextmanager
    def client(self, **over: Any) -> Iterator[OperatorClient]:
        """Give a client, and close it; raises :class:`ConfigurationError`."""
        if self.arguments.get("debug"):
            logging.basicConfig(stream=sys.stderr, level=logging.INFO)
            logging.getLogger("sandai.op").setLevel(logging.DEBUG)
        arguments: dict[str, Any] = {**self.arguments, **over}
        with OperatorClient(self.name, self.version, **arguments) as client:
            try:
                yield client
            except (KeyboardInterrupt, _signals.Terminated):
                _signals.give_way()
                raise


def operator_command(function: Callable[..., None]) -> Command:
    """Make a command of a function that takes a :class:`Target` and an :class:`Output`."""

    @functools.wraps(function)
    def call(name: str, version: str, as_json: bool, **given: Any) -> None:
        target = Target(name, version, arguments_of(given))
        try:
            function(target, Output(as_json), **given)
        except ConfigurationError as error:
            if (flag := flag_of(error.setting)) is None:
                raise
            # Said with the flag that was typed.
            said = f"{flag} {error.value!r}: {error.reason}"
            raise Failure(error, target.described, said) from error

    decorated: Any = with_settings(call)
    for add in (
        click.option(
            "--json", "as_json", is_flag=True, help="Write one JSON document, errors too."
        ),
        click.argument("version"),
        click.argument("name"),
    ):
        decorated = add(decorated)
    command: Command = click.command(cls=Command)(decorated)
    return command
