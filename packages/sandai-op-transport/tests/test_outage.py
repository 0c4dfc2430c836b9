"""An outage is logged once, at its beginning and its end, and tried less and less often."""

import logging

import pytest

from sandai.op.transport import Outage, TransportError


def test_outage(caplog: pytest.LogCaptureFixture) -> None:
    """The backoff grows to a second and is gone with the first success."""
    outage = Outage("results", logging.getLogger("test"))
    assert outage.try_now(0.0)
    waits, now = [], 0.0
    for number in range(9):
        outage.failed(TransportError(f"failure {number}"), now)
        assert not outage.try_now(now)
        later = next(now + tick / 100 for tick in range(200) if outage.try_now(now + tick / 100))
        waits.append(later - now)
        now = later
    assert waits == sorted(waits)
    assert waits[0] <= 0.1
    assert 0.99 <= waits[-1] <= 1.01
    assert str(outage.error) == "failure 8"
    outage.worked()
    assert outage.try_now(now)
    outage.worked()
    assert outage.error is None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "failure 0" in messages[0]
