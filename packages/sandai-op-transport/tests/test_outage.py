"""An outage is logged once, at its beginning and its end, and tried less and less often."""

import logging

import pytest

from sandai.op.transport import Outage, PushPolicy, TransportError


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


def test_what_fails_now_and_then_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """An outage soon after another is logged if it lasts, or comes after a well time."""
    outage = Outage("results", logging.getLogger("test"))
    for tick in range(100):
        outage.failed(TransportError("now and then"), tick / 10)
        outage.worked()
    assert len(caplog.records) == 2
    for tick in range(20):
        outage.failed(TransportError("for long"), 11 + tick / 10)
    assert len(caplog.records) == 3
    outage.worked()
    outage.failed(TransportError("much later"), 60)
    outage.worked()
    told = [record.getMessage() for record in caplog.records]
    assert ["trying on" in text for text in told] == [True, False] * 3


def test_an_outage_that_becomes_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    """A server that is back and wants another password is told of, once."""
    outage = Outage("results", logging.getLogger("test"))
    for said, refused in (("gone", False), ("WRONGPASS", True), ("WRONGPASS", True)):
        outage.failed(TransportError(said, refused=refused), 0.0)
    messages = [record.getMessage() for record in caplog.records]
    assert [("gone" in text, "WRONGPASS" in text) for text in messages] == [
        (True, False),
        (False, True),
    ]


def test_records_keep_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that keeps records keeps texts, not what the errors' tracebacks hold."""
    logger = logging.getLogger("test")
    outage = Outage("results", logger)
    policy = PushPolicy(outage, logger, possible=True)
    error = TransportError("failure")
    outage.failed(error, 0.0)
    policy.failed(error, 0.0, took=0.0)
    policy.failed(error, 0.0, took=0.0)
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert "failure" in record.getMessage()
        assert isinstance(record.args, tuple)
        assert {type(value) for value in record.args} == {str}
