"""The readers of one backend."""

import pytest

from sandai.op.transport import TransportError
from sandai.op.transport._readers import Readers


class Loop:
    """An owner."""


class Reader:
    """Notes that it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def statistics(self) -> str:
        return "said"


def test_one_for_each_owner() -> None:
    """Made once for an owner, and closed with the rest."""
    readers, loops = Readers(), [Loop(), Loop()]
    made = [readers.get(loop, Reader) for loop in loops]
    assert [readers.get(loop, Reader) for loop in loops] == made
    assert made[0] is not made[1]
    assert readers.statistics() == ("said", "said")
    readers.close()
    readers.close()
    assert [reader.closed for reader in made if isinstance(reader, Reader)] == [1, 1]


def test_none_after_closing() -> None:
    """Nobody opens connections on a resource whose last client was closed."""
    readers, loop = Readers(), Loop()
    readers.close()
    with pytest.raises(TransportError, match="closed"):
        readers.get(loop, Reader)


def test_an_owner_is_not_kept() -> None:
    """A loop that is gone takes its reader with it."""
    readers, loop = Readers(), Loop()
    readers.get(loop, Reader)
    del loop
    assert readers.statistics() == ()
