"""
Operators in this process, on ``memory://``: for tests without Redis, and for first steps.

Everything but the connection is the code that runs against Redis.
"""

from ._factory import FakeOperators
from ._messages import FakeTask
from ._operator import FakeOperator
from ._replies import Reply
from ._world import World, world

__all__ = ["FakeOperator", "FakeOperators", "FakeTask", "Reply", "World", "world"]
