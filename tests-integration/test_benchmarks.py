"""What the benchmarks decide: medians, ratios, what is a breach, and what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiling import shares
from server_view import Connections, count
from suite import DEFAULT, SCENARIOS, Limits
from tuning import LOADS, scenario, table
from verdict import (
    Limit,
    Results,
    breaches,
    budget_breaches,
    missed_aims,
    parse,
    summary,
    to_repeat,
)

LIMITS = Path(__file__).parents[1] / "benchmarks" / "limits.toml"


def limit(**fields: object) -> Limit:
    """Make a limit of the rate on a loop, unless other fields are said."""
    stated = {"scenario": "loop", "measure": "rate", "tolerance": 0.1, "quick_tolerance": 0.5}
    return Limit(**(stated | fields))  # type: ignore[arg-type]  # as TOML has it


def test_summary_takes_medians_and_most_connections() -> None:
    """An outlier among the rounds counts for nothing, unless it is one of connections."""
    rounds = [{"rate": rate, "broker_peak": 7 - rate} for rate in (1.0, 5.0, 2.0)]
    assert summary(rounds) == {"rate": 2, "broker_peak": 6}


def test_checked_in_limits_are_understood() -> None:
    """The file holds limits of scenarios, measures and contestants that there are."""
    assert len(parse(LIMITS.read_text("utf-8"))) > 20


@pytest.mark.parametrize(
    "fields",
    [
        {"at_least": 1, "scenario": "lop"},
        {"at_least": 1, "against": "flor"},
        {"at_least": 1, "measure": "speed"},
        {},
        {"at_least": 1, "at_most": 2},
    ],
)
def test_limits_that_make_no_sense(fields: dict[str, object]) -> None:
    """A misspelt limit, which would check nothing, is an error."""
    with pytest.raises(ValueError, match=r"no such|neither or both"):
        limit(**fields)


@pytest.mark.parametrize(
    ("rate", "quick", "is_missed"),
    [(68, False, False), (67, False, True), (67, True, False), (37, True, True)],
)
def test_ratio_to_a_contestant(rate: float, quick: bool, is_missed: bool) -> None:
    """A ratio is missed beyond its tolerance, which is another one in a quick run."""
    results: Results = {"loop": {"ours": {"rate": rate}, "floor": {"rate": 100}}}
    missed = breaches(results, [limit(against="floor", at_least=0.75)], quick=quick)
    assert bool(missed) == is_missed
    if missed:
        assert str(missed[0]).startswith(f"loop: rate / floor is 0.{rate}, limit at least 0.75")


def test_value_and_ratios_to_the_ideal_and_to_another_scenario() -> None:
    """A limit may stand against nothing, against the ideal, or against another scenario."""
    results: Results = {
        "growth 4,800": {"ours": {"rate": 80, "wall": 12, "ideal": 10}},
        "growth 480": {"ours": {"rate": 100}},
    }
    long = {"scenario": "growth 4,800"}
    assert limit(**long, at_most=1).value(results) == 80
    assert limit(**long, against="growth 480", at_least=1).value(results) == 0.8
    assert limit(**long, measure="wall", against="ideal", at_most=1).value(results) == 1.2


def test_aims_are_told_and_break_nothing() -> None:
    """What is aimed at, beyond what must hold, is said as long as it is not reached."""
    results: Results = {"loop": {"ours": {"rate": 60}, "floor": {"rate": 100}}}
    limits = [limit(against="floor", at_least=0.5, aim=0.75)]
    assert breaches(results, limits, quick=False) == []
    assert missed_aims(results, limits) == ["loop: rate / floor is 0.6, aim at least 0.75"]
    results["loop"]["ours"]["rate"] = 75
    assert missed_aims(results, limits) == []
    limits = [limit(measure="p50_ms", against="floor", at_most=3, aim=1.4)]
    results = {"loop": {"ours": {"p50_ms": 2}, "floor": {"p50_ms": 1}}}
    assert missed_aims(results, limits) == ["loop: p50_ms / floor is 2, aim at most 1.4"]
    assert missed_aims({}, limits) == []


def test_what_was_not_measured_is_no_breach() -> None:
    """Who chooses scenarios or contestants hears nothing of the others."""
    results: Results = {"loop": {"ours": {"rate": 1}}}
    limits = [limit(against="floor", at_least=9), limit(scenario="loops", at_least=9)]
    assert breaches(results, limits, quick=False) == []


def test_what_is_measured_again() -> None:
    """A scenario that misses a limit is, and so is the scenario that it stands against."""
    results: Results = {
        name: {"ours": {"rate": rate}}
        for name, rate in (("growth 4,800", 1.0), ("growth 480", 9.0), ("loop", 9.0))
    }
    limits = [
        limit(scenario="growth 4,800", against="growth 480", at_least=1),
        limit(at_least=9),
    ]
    assert to_repeat(results, limits, quick=True) == {"growth 4,800", "growth 480"}


def test_budgets() -> None:
    """A connection too many, one that is left and one without a name are breaches, at any time."""
    kept = {"broker_peak": 8, "backend_peak": 8, "settled": 0, "unnamed": 0}
    assert list(budget_breaches("loop", DEFAULT, kept)) == []
    over = {"broker_peak": 9.0, "backend_peak": 9.0, "settled": 1.0, "unnamed": 1.0}
    assert [breach.measure for breach in budget_breaches("loop", DEFAULT, over)] == list(over)
    results: Results = {"loop": {"ours": over, "older": over}}
    told = [str(breach) for breach in breaches(results, [], quick=True)]
    assert len(told) == 4
    assert told[0] == "loop: broker_peak is 9, limit 8 connections"


def test_ideal_wall_time() -> None:
    """The operator's waves bound the wall time: as many at a time as it takes, or are asked."""
    assert SCENARIOS["threads, 150 ms"].ideal(240) == pytest.approx(1.5)
    assert SCENARIOS["loop, 150 ms"].ideal(240) == pytest.approx(1.2)


def test_connections_are_told_apart() -> None:
    """Ours count by name, others by database, those of the bench itself not at all."""
    lines = [
        b"id=1 name=sandai-op:backend:7 db=0 cmd=client ",
        b"id=2 name=sandai-op:broker:7 db=0 cmd=lpush ",
        b"id=3 name= db=1 cmd=subscribe ",
        b"id=4 name= db=0 cmd=client ",
        b"id=5 name=light-operator db=0 cmd=brpop ",
        b"id=6 name=bench-watcher db=0 cmd=client ",
    ]
    assert count(b"\n".join(lines)) == Connections(broker=1, backend=2, unnamed=1)


def test_a_sample_counts_for_the_innermost_part_of_ours() -> None:
    """What a library does is on the account of whom of ours it works for, else on the caller's."""
    user = "run (/b/contestants/driving.py:9);sync (/p/sandai/op/client/_client.py:5)"
    lines = [
        f"{user};dumps (/l/kombu/serialization.py:3) 6",
        f"{user};encode (/p/sandai/op/transport/_message.py:7);packb (/l/msgpack/__init__.py:1) 3",
        "run_forever (/l/asyncio/base_events.py:1) 2",
        "work.<locals>.call (/b/contestants/floor_threads.py:8);recv (/l/redis/x.py:2) 1",
    ]
    assert shares(lines) == [
        ("client/_client", 0.5),
        ("transport/_message", 0.25),
        ("the caller, threads, asyncio", pytest.approx(1 / 6)),
        ("floor_threads, call", pytest.approx(1 / 12)),
    ]


def test_rates_against_limits() -> None:
    """Both pools have the size, half of it is for commands, and a row says what was found."""
    assert [scenario(*LOADS[0], size).limits for size in (1, 8)] == [
        Limits(1, 1, 1),
        Limits(8, 8, 4),
    ]
    figures = {"rate": 1234.0, "p99_ms": 5.0, "broker_peak": 1.0, "backend_peak": 2.0}
    _, *rows = table({"on a loop": {1: figures, 2: figures}})
    assert rows == [
        ["on a loop", "1", "1,234", "5.00", "1", "2"],
        ["", "2", "1,234", "5.00", "1", "2"],
    ]
