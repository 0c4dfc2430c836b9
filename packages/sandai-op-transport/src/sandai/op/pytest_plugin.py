"""
The pytest plugin of ``sandai-op-transport``: the fixture ``fake_operator``.

It stands beside ``sandai.op.transport`` so that pytest, which loads it in every run, does
not import Celery with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sandai.op.transport.testing import FakeOperators


@pytest.fixture
def fake_operator(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOperators]:
    """
    Start operators without Redis: ``fake_operator("clipper", "v1", handler)``.

    Each test has a world of its own; the variables ``SANDAI_OPERATOR_CELERY_BROKER_URL``
    and ``SANDAI_OPERATOR_CELERY_RESULT_BACKEND`` name it.
    """
    from sandai.op.transport.testing._factory import fake_operators

    with fake_operators(monkeypatch) as operators:
        yield operators
