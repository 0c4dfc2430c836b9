"""The mailbox: documents for one waiting thread."""

from __future__ import annotations

import math
import threading
import time

import pytest

from sandai.op.client._mailbox import Mailbox, deadline_after
from sandai.op.transport import pending


def test_documents_come_in_order_even_after_the_deadline() -> None:
    """What has been delivered is handed out, however late it is."""
    box = Mailbox()
    first, second = pending("a"), pending("b")
    box.deliver(first)
    box.deliver(second)
    assert box.get(-math.inf) is first
    assert box.get(math.inf) is second
    assert box.get(time.monotonic()) is None


def test_an_error_ends_the_wait() -> None:
    """A failure is raised in the thread that waits."""
    box = Mailbox()
    threading.Timer(0.01, box.fail, [LookupError("over")]).start()
    with pytest.raises(LookupError, match="over"):
        box.get(math.inf)


def test_a_wait_without_limit_is_woken() -> None:
    """The longest wait there is ends with a document."""
    box, document = Mailbox(), pending("a")
    threading.Timer(0.01, box.deliver, [document]).start()
    assert box.get(deadline_after(None)) is document
    box.deliver(document)
    assert box.get(deadline_after(1e300)) is document


def test_deadlines_are_of_the_monotonic_clock() -> None:
    """A timeout becomes a point in time, none becomes infinity."""
    before = time.monotonic()
    assert before + 5 <= deadline_after(5) <= time.monotonic() + 5
    assert deadline_after(None) == math.inf
