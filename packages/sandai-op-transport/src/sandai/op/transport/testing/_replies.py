"""What an operator may do with one task besides answering it."""

from typing import Any

from attrs import field, frozen


@frozen
class Reply:
    """
    An answer, and how it goes astray.

    ``value`` is what a handler may return: a ``TaskResult``, an ``OperatorDescription``,
    ``None`` (success without results), or a raw envelope of any shape. An exception is
    raised. ``delay`` is seconds. ``state`` is stored in place of SUCCESS, as it is.
    Raises ``ValueError`` or ``TypeError`` for a delay or a count that is no number.
    """

    value: Any = None
    delay: float = field(default=0.0, converter=float)
    state: str | None = None
    #: Whether the result's key is written, and whether it is published.
    stored: bool = True
    published: bool = True
    #: How often.
    times: int = field(default=1, converter=int)

    @classmethod
    def late(cls, seconds: float, value: Any = None) -> "Reply":
        """Answer after so many seconds."""
        return cls(value, delay=seconds)

    @classmethod
    def lost(cls) -> "Reply":
        """Do the task and lose its result: nothing is stored or published."""
        return cls(stored=False, published=False)

    @classmethod
    def unpublished(cls, value: Any = None) -> "Reply":
        """Store the result and do not publish it, as some operators do."""
        return cls(value, published=False)

    @classmethod
    def twice(cls, value: Any = None) -> "Reply":
        """Store and publish the result twice, as after a redelivery."""
        return cls(value, times=2)

    @classmethod
    def started(cls) -> "Reply":
        """Pick the task up and never answer: its state stays STARTED."""
        return cls({"pid": 0, "hostname": "memory"}, state="STARTED")

    @classmethod
    def revoked(cls) -> "Reply":
        """Answer as a worker answers for a task that was revoked."""
        return cls(state="REVOKED")
