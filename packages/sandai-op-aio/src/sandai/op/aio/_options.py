"""Learning what an operator takes, before the first task is built that is to be checked."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from attrs import evolve

from sandai.op.models import TaskTimeoutError
from sandai.op.transport import TaskControls

from ._shared_fetch import SharedFetch
from ._submitter import Submitter

#: Seconds of a timeout that is over: 0 would be none.
_LEAST = 0.001
#: Seconds that must be left to ask once more when another caller's time was over.
_WORTHWHILE = 0.5

Description = dict[str, Any]
Fetch = Callable[[float | None, float], Awaitable[Description]]


async def learn_options(
    submitter: Submitter,
    description: SharedFetch[Description],
    fetch: Fetch,
    controls: TaskControls,
    limit: float | None,
    deadline: float,
) -> TaskControls:
    """
    Ask for the description, once for all, and have options checked from now on.

    That takes its time of the call's *limit* (seconds), which is over at *deadline*
    (``time.monotonic()``). Returns the call's controls with what is left of it. Raises
    as ``desc`` does, and :class:`ConfigurationError` for a schema that is none.
    """
    submitter.check(controls)
    while True:
        try:
            found = await description.get(partial(fetch, limit, deadline), deadline)
            break
        except TaskTimeoutError:
            # Perhaps that of a caller who had less time.
            if deadline - time.monotonic() < _WORTHWHILE:
                raise
        except TimeoutError:
            # Another caller asks, and goes on.
            raise TaskTimeoutError("of the description", limit) from None
    submitter.learn_schema(found["options_schema"])
    if limit is None or controls.timeout == 0:
        return controls
    return evolve(controls, timeout=min(limit, max(deadline - time.monotonic(), _LEAST)))
