"""What is measured: each scenario is a shape, a load, and who takes part with how many requests."""

from __future__ import annotations

from attrs import frozen

CONTESTANTS = ("ours", "floor", "plain_celery", "older")


@frozen
class Limits:
    """A client's connection budgets."""

    broker: int
    backend: int
    poll_concurrency: int


#: The defaults, and the relaxed ones of the older client's page.
DEFAULT, RELAXED = Limits(8, 8, 4), Limits(32, 32, 32)


@frozen
class Operator:
    """Who answers: each task takes *delay* seconds, and *at_once* of them run at a time."""

    name: str
    delay: float
    at_once: int


AT_ONCE, SLOW = Operator("bench", 0.0, 4096), Operator("slow", 0.15, 32)


@frozen
class Requests:
    """How many requests each contestant gets; with none it does not take part."""

    ours: int = 0
    floor: int = 0
    plain_celery: int = 0
    older: int = 0

    def of(self, contestant: str) -> int:
        """Return the number of one."""
        return int(getattr(self, contestant))


@frozen(kw_only=True)
class Scenario:
    """
    One kind of load.

    *requests* are those of a full run, *quick* those of a quick one. With a *wait* (seconds,
    full and quick) no operator answers, and the pending requests are watched for so long.
    """

    name: str
    shape: str
    requests: Requests
    quick: Requests = Requests()
    concurrency: int = 1
    loops: int = 1
    operator: Operator = AT_ONCE
    limits: Limits = DEFAULT
    wait: tuple[float, float] | None = None

    def of(self, quick: bool) -> Requests:
        """Return the numbers of requests of a full or of a quick run."""
        return self.quick if quick else self.requests

    def ideal(self, requests: int) -> float:
        """Return the seconds that the operator alone needs."""
        at_once = min(self.operator.at_once, self.concurrency * self.loops)
        return -(-requests // at_once) * self.operator.delay


# The older client's rate is a hundredth of ours: it gets fewer requests, and rates are compared.

_SEQUENTIAL = Scenario(
    name="sequential",
    shape="sequential",
    requests=Requests(ours=1000, floor=1000, plain_celery=500, older=20),
    quick=Requests(ours=500, floor=500, plain_celery=200),
)

#: The four of the older client's page.
_SHAPES = (
    ("threads", "threads", 24, 1),
    ("client each", "client_each", 24, 1),
    ("loop", "loops", 96, 1),
    ("loops", "loops", 24, 4),
)


def _at_full_speed(name: str, shape: str, concurrency: int, loops: int) -> Scenario:
    celery = shape != "loops"  # it has no asyncio
    return Scenario(
        name=name,
        shape=shape,
        concurrency=concurrency,
        loops=loops,
        requests=Requests(ours=9600, floor=9600, plain_celery=960 * celery, older=96),
        quick=Requests(ours=4800, floor=9600, plain_celery=480 * celery, older=48),
    )


def _relaxed(name: str, shape: str, concurrency: int, loops: int) -> Scenario:
    return Scenario(
        name=f"{name}, relaxed",
        shape=shape,
        concurrency=concurrency,
        loops=loops,
        limits=RELAXED,
        requests=Requests(ours=9600, older=96),
    )


def _slow(name: str, shape: str, concurrency: int, loops: int, limits: Limits) -> Scenario:
    celery = shape != "loops" and limits is DEFAULT
    in_quick = name in ("threads", "loop") and limits is DEFAULT
    return Scenario(
        name=f"{name}, 150 ms" + (", relaxed" if limits is RELAXED else ""),
        shape=shape,
        concurrency=concurrency,
        loops=loops,
        operator=SLOW,
        limits=limits,
        requests=Requests(ours=240, plain_celery=240 * celery, older=96),
        quick=Requests(ours=240 * in_quick),
    )


def _batch(name: str, shape: str) -> Scenario:
    return Scenario(
        name=name,
        shape=shape,
        requests=Requests(ours=10_000, floor=10_000, plain_celery=2000, older=96),
        quick=Requests(ours=10_000, floor=10_000, plain_celery=500),
    )


def _pending(shape: str, requests: int, quick: bool) -> Scenario:
    kind = {
        "pending_batch": "in a batch",
        "pending_async_batch": "in an async batch",
        "pending_calls": "coroutines",
    }[shape]
    return Scenario(
        name=f"{requests:,} {kind}",
        shape=shape,
        requests=Requests(ours=requests, floor=requests * (shape == "pending_calls")),
        quick=Requests(ours=requests * quick),
        wait=(10.0, 3.0),
    )


_PENDING = (
    _pending("pending_batch", 10_000, quick=True),
    _pending("pending_batch", 100_000, quick=False),
    _pending("pending_async_batch", 10_000, quick=False),
    _pending("pending_async_batch", 100_000, quick=True),
    _pending("pending_calls", 10_000, quick=True),
    _pending("pending_calls", 100_000, quick=False),
)


def _growth(requests: int) -> Scenario:
    celery, older = requests * (requests <= 480), requests * (requests <= 120)
    return Scenario(
        name=f"growth {requests:,}",
        shape="threads",
        concurrency=24,
        requests=Requests(ours=requests, plain_celery=celery, older=older),
        quick=Requests(ours=requests * (requests >= 480)),
    )


GROWTH = tuple(_growth(requests) for requests in (40, 120, 240, 480, 4800))

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        _SEQUENTIAL,
        *(_at_full_speed(*shape) for shape in _SHAPES),
        *(_relaxed(*shape) for shape in _SHAPES),
        *(_slow(*shape, DEFAULT) for shape in _SHAPES),
        *(_slow(*shape, RELAXED) for shape in _SHAPES),
        _batch("batch", "batch"),
        _batch("async batch", "async_batch"),
        *_PENDING,
        *GROWTH,
    )
}
