"""What a run may not do: exceed a budget of connections, or miss a limit of ``limits.toml``."""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from measuring import Figures
from report import MEASURES
from suite import CONTESTANTS, SCENARIOS, Limits

Results = dict[str, dict[str, Figures]]
"""Figures by scenario and contestant."""
IDEAL = "ideal"


def summary(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each measure, but the highest number of connections."""
    return {
        name: (max if name in ("broker_peak", "backend_peak", "unnamed", "settled") else _median)(
            [figures[name] for figures in rounds if name in figures]
        )
        for name in rounds[0]
    }


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


@frozen
class Breach:
    """A limit that was not kept."""

    scenario: str
    measure: str
    value: float
    limit: str

    def __str__(self) -> str:
        return f"{self.scenario}: {self.measure} is {self.value:.4g}, {self.limit}"


@frozen(kw_only=True)
class Limit:
    """One line of ``limits.toml``; see there."""

    scenario: str = field()
    measure: str
    against: str | None = None
    at_most: float | None = None
    at_least: float | None = None
    aim: float | None = None
    tolerance: float
    quick_tolerance: float

    def __attrs_post_init__(self) -> None:
        known = {None, IDEAL, *CONTESTANTS, *SCENARIOS}
        if self.scenario not in SCENARIOS or self.against not in known:
            raise ValueError(f"no such scenario or contestant: {self}")
        if self.measure not in MEASURES:
            raise ValueError(f"no such measure: {self}")
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"neither or both of at_most and at_least: {self}")

    def value(self, results: Results) -> float | None:
        """Return the measure, or its ratio to what it stands against; none if not measured."""
        ours = results.get(self.scenario, {}).get("ours", {})
        if self.measure not in ours:
            return None
        if self.against is None:
            return ours[self.measure]
        if self.against == IDEAL:
            other = ours.get(IDEAL)
        elif self.against in CONTESTANTS:
            other = results[self.scenario].get(self.against, {}).get(self.measure)
        else:
            other = results.get(self.against, {}).get("ours", {}).get(self.measure)
        return ours[self.measure] / other if other else None

    def missed_aim(self, results: Results) -> str | None:
        """Say how far what is aimed at is from what was reached, if it was not."""
        value = self.value(results)
        if value is None or self.aim is None:
            return None
        reached = value <= self.aim if self.at_least is None else value >= self.aim
        bound = "at most" if self.at_least is None else "at least"
        return (
            None
            if reached
            else f"{self.scenario}: {self.label} is {value:.3g}, aim {bound} {self.aim:g}"
        )

    @property
    def label(self) -> str:
        """What is limited, in a word or two."""
        return self.measure if self.against is None else f"{self.measure} / {self.against}"

    def breach(self, results: Results, *, quick: bool) -> Breach | None:
        """Say how it is missed by more than the tolerance, if it is."""
        value = self.value(results)
        tolerance = self.quick_tolerance if quick else self.tolerance
        if value is None:
            return None
        if self.at_most is not None:
            missed = value > self.at_most * (1 + tolerance)
            limit = f"limit at most {self.at_most:g}"
        else:
            assert self.at_least is not None
            missed = value < self.at_least * (1 - tolerance)
            limit = f"limit at least {self.at_least:g}"
        limit += f", tolerance {tolerance:.0%}"
        return Breach(self.scenario, self.label, value, limit) if missed else None


def parse(text: str) -> list[Limit]:
    """Read ``limits.toml``; raises `ValueError` or `TypeError` where a limit makes no sense."""
    tables: list[dict[str, Any]] = tomllib.loads(text)["limit"]
    return [Limit(**table) for table in tables]


def budget_breaches(scenario: str, budgets: Limits, ours: Mapping[str, float]) -> Iterator[Breach]:
    """Yield what was open beyond the budgets, left open, or without our name."""
    for measure, limit in (
        ("broker_peak", budgets.broker),
        ("backend_peak", budgets.backend),
        ("settled", 0),
        ("unnamed", 0),
    ):
        if ours.get(measure, 0) > limit:
            yield Breach(scenario, measure, ours[measure], f"limit {limit} connections")


def breaches(results: Results, limits: Iterable[Limit], *, quick: bool) -> list[Breach]:
    """Return everything that was not kept, budgets first."""
    found = [
        breach
        for name, by_contestant in results.items()
        for breach in budget_breaches(name, SCENARIOS[name].limits, by_contestant.get("ours", {}))
    ]
    return found + [
        breach for limit in limits if (breach := limit.breach(results, quick=quick)) is not None
    ]


def missed_aims(results: Results, limits: Iterable[Limit]) -> list[str]:
    """Return a sentence for each aim that was not reached."""
    return [said for limit in limits if (said := limit.missed_aim(results)) is not None]


def to_repeat(results: Results, limits: Iterable[Limit], *, quick: bool) -> set[str]:
    """Name the scenarios that miss a limit, and those that they stand against."""
    missed = [limit for limit in limits if limit.breach(results, quick=quick) is not None]
    return {limit.scenario for limit in missed} | {
        limit.against for limit in missed if limit.against in SCENARIOS
    }
