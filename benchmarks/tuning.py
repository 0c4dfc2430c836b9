"""How rates depend on the limits: one load after another on limits from 1 to 32."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from measuring import Figures, Place, measure
from report import MEASURES, Rows
from suite import Limits, Requests, Scenario
from verdict import Breach, budget_breaches, summary

#: The sizes of both pools; half of each is for commands.
SIZES = (1, 2, 4, 8, 16, 32)
#: What is called, its shape, how many at a time, and on how many loops.
LOADS = (
    ("24 threads", "threads", 24, 1),
    ("96 on a loop", "loops", 96, 1),
    ("4 loops, 24 on each", "loops", 24, 4),
)
REQUESTS, QUICK = 4800, 960
_SHOWN = ("rate", "p99_ms", "broker_peak", "backend_peak")

Curves = dict[str, dict[int, Figures]]
"""Figures by load and size of the pools."""


def scenario(name: str, shape: str, concurrency: int, loops: int, size: int) -> Scenario:
    """Return a load on pools of one size."""
    return Scenario(
        name=f"{name}, limit {size}",
        shape=shape,
        concurrency=concurrency,
        loops=loops,
        limits=Limits(size, size, max(1, size // 2)),
        requests=Requests(ours=REQUESTS),
        quick=Requests(ours=QUICK),
    )


def curves(
    where: Place,
    *,
    rounds: int,
    quick: bool,
    tell: Callable[[str], None],
    sizes: Iterable[int] = SIZES,
) -> tuple[Curves, list[Breach]]:
    """Measure each load on each size; return the figures, and budgets that were not kept."""
    found: Curves = {}
    missed: list[Breach] = []
    for load in LOADS:
        for size in sizes:
            chosen = scenario(*load, size)
            tell(chosen.name)
            requests = chosen.of(quick).ours
            figures = summary(
                [measure(chosen, "ours", requests, quick, where) for _ in range(rounds)]
            )
            missed += budget_breaches(chosen.name, chosen.limits, figures)
            found.setdefault(load[0], {})[size] = figures
    return found, missed


def table(found: Curves) -> Rows:
    """Return a row for each load and size; headings first."""
    rows = [["load", "limit", *(MEASURES[name][0] for name in _SHOWN)]]
    for load, by_size in found.items():
        for number, (size, figures) in enumerate(by_size.items()):
            cells = [MEASURES[name][1].format(figures[name]) for name in _SHOWN]
            rows.append(["" if number else load, str(size), *cells])
    return rows
