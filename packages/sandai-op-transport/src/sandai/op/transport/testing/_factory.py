"""What the fixture ``fake_operator`` is."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ._operator import FakeOperator, Handler
from ._world import World, forget, world

if TYPE_CHECKING:
    import pytest

_VARIABLES = ("SANDAI_OPERATOR_CELERY_BROKER_URL", "SANDAI_OPERATOR_CELERY_RESULT_BACKEND")


class FakeOperators:
    """
    Start operators in one test's own world.

    The environment names that world for the test, so that clients which are made
    without a URL find it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """The URL of the test's world."""
        return self.world.url

    def __call__(
        self, name: str, version: str, handler: Handler | None = None, **kwargs: Any
    ) -> FakeOperator:
        """Start an operator that ends with the test; the arguments are its own."""
        operator = FakeOperator(name, version, handler, url=self.url, **kwargs)
        return self._stack.enter_context(operator)

    def close(self) -> None:
        """Close the operators."""
        self._stack.close()


@contextmanager
def fake_operators(monkeypatch: "pytest.MonkeyPatch") -> Iterator[FakeOperators]:
    """Make a world for the ``with`` block."""
    url = f"memory://test-{uuid4()}"
    for variable in _VARIABLES:
        monkeypatch.setenv(variable, url)
    operators = FakeOperators(world(url))
    try:
        yield operators
    finally:
        operators.close()
        forget(operators.world.name)
