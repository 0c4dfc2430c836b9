"""
The benchmarks: the client beside its peers, against a real Redis.

``nox -s bench`` runs them, ``nox -s bench -- --quick`` in a minute and a half. A budget of
connections that is not kept to, or a limit of ``limits.toml`` that is missed, is named, and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from celery_worker import CeleryWorker
from light_operator import LightOperator
from local_redis import LocalRedis
from measuring import Figures, Place, measure
from profiling import profiles
from report import as_markdown, as_text, tables
from suite import AT_ONCE, CONTESTANTS, SCENARIOS, SLOW, Operator, Scenario
from tuning import curves, table
from verdict import Breach, Limit, Results, breaches, missed_aims, parse, summary, to_repeat

HERE = Path(__file__).parent
FIGURES, PROFILES, LIMITS = "figures", "profiles", "limits"
"""Between marks of these names a page has what was measured."""
REPEAT_UNTIL = 70.0
"""Seconds into a quick run after which nothing is measured again."""


def pythons() -> dict[str, str]:
    """Return whose Python runs each contestant; the environment says where the peers' are."""
    found = {"ours": sys.executable, "floor": sys.executable}
    for contestant, variable in (
        ("plain_celery", "PLAIN_CELERY_PYTHON"),
        ("older", "OLDER_CLIENT_PYTHON"),
    ):
        if python := os.environ.get(variable):
            found[contestant] = python
    return found


@contextmanager
def place(celery: bool) -> Iterator[Place]:
    """Run the server and the operators, light ones or real workers."""
    with ExitStack() as stack:
        server = stack.enter_context(LocalRedis())
        backend_url = server.url.removesuffix("0") + "1"
        for operator in (AT_ONCE, SLOW):
            stack.enter_context(
                _worker(operator, server.url, backend_url)
                if celery
                else LightOperator(
                    server.url,
                    backend_url=backend_url,
                    name=operator.name,
                    delay=operator.delay,
                    concurrency=operator.at_once,
                )
            )
        yield Place(server.url, backend_url, pythons(), is_counted=not celery)


def _worker(operator: Operator, broker_url: str, backend_url: str) -> CeleryWorker:
    environment = {
        "BENCH_BROKER": broker_url,
        "BENCH_BACKEND": backend_url,
        "BENCH_NAME": operator.name,
        "BENCH_DELAY": str(operator.delay),
    }
    return CeleryWorker(
        "worker", operator.name, "v1", environment=environment, folders=[HERE], concurrency=32
    )


def run(arguments: argparse.Namespace, where: Place, chosen: list[Scenario]) -> Results:
    """Measure the scenarios, in each round all contestants one after the other."""
    results: Results = {}
    for scenario in chosen:
        rounds: dict[str, list[Figures]] = defaultdict(list)
        numbers = scenario.of(arguments.quick)
        # What pends is watched once: seconds of doing nothing differ little.
        for _ in range(1 if scenario.wait else arguments.rounds):
            for contestant in CONTESTANTS:
                requests = numbers.of(contestant)
                if not requests or contestant not in arguments.contestant:
                    continue
                if contestant not in where.pythons:
                    continue
                _tell(f"{scenario.name}: {contestant}")
                rounds[contestant].append(
                    measure(scenario, contestant, requests, arguments.quick, where)
                )
        if rounds:
            results[scenario.name] = {name: summary(found) for name, found in rounds.items()}
    _tell("")
    return results


def run_and_judge(
    arguments: argparse.Namespace, chosen: list[Scenario]
) -> tuple[Results, list[Breach]]:
    """
    Measure, and return the figures with what was not kept.

    In a quick run what misses a limit is measured a second time, if there is time: once may
    have been at a bad moment. A budget of connections has no bad moments.
    """
    began = time.monotonic()
    with place(arguments.celery) as where:
        results = run(arguments, where, chosen)
        if arguments.celery:
            return results, []
        limits = checked_in_limits()
        exceeded = breaches(results, (), quick=arguments.quick)
        again = to_repeat(results, limits, quick=arguments.quick) if arguments.quick else set()
        for name in sorted(again, key=list(SCENARIOS).index):
            if time.monotonic() - began < REPEAT_UNTIL:
                results |= run(arguments, where, [SCENARIOS[name]])
    missed = breaches(results, limits, quick=arguments.quick)
    return results, [*(breach for breach in exceeded if breach not in missed), *missed]


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    arguments = _parse()
    if arguments.profile:
        profile(arguments)
        return 0
    if arguments.limits is not None:
        missed = tune(arguments)
    else:
        missed = compare(arguments)
    for breach in missed:
        print(f"not kept: {breach}", file=sys.stderr)
    return 1 if missed else 0


def compare(arguments: argparse.Namespace) -> list[Breach]:
    """Measure the chosen scenarios, and keep what was found; return what was not kept to."""
    chosen = [
        scenario
        for name, scenario in SCENARIOS.items()
        if (not arguments.scenario or name in arguments.scenario)
        and not (arguments.celery and scenario.wait)
    ]
    results, missed = run_and_judge(arguments, chosen)
    _keep(arguments, results)
    return missed


def checked_in_limits() -> list[Limit]:
    """Return those of ``limits.toml``."""
    return parse((HERE / "limits.toml").read_text("utf-8"))


def profile(arguments: argparse.Namespace) -> None:
    """Say where the time goes, instead of measuring it."""
    told = []
    with place(celery=False) as where:
        for heading, rows in profiles(where):
            print(f"{heading}\n{as_text(rows)}\n", flush=True)
            told.append(f"*{heading}*\n\n{as_markdown(rows)}")
    if arguments.page is not None:
        _put_into(arguments.page, PROFILES, f"{_measured(arguments)}\n\n" + "\n\n".join(told))


def tune(arguments: argparse.Namespace) -> list[Breach]:
    """Say how rates depend on the limits, instead of comparing."""
    with place(celery=False) as where:
        found, missed = curves(where, rounds=arguments.rounds, quick=arguments.quick, tell=_tell)
    _tell("")
    rows = table(found)
    print(as_text(rows))
    if arguments.page is not None:
        measured = f"{_measured(arguments)[:-1]}, rounds: {arguments.rounds}."
        _put_into(arguments.page, LIMITS, f"{measured}\n\n{as_markdown(rows)}")
    from plot import plot_limits

    arguments.limits.parent.mkdir(exist_ok=True)
    plot_limits(found, _measured(arguments), arguments.limits)
    return missed


def _tell(what: str) -> None:
    print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def _keep(arguments: argparse.Namespace, results: Results) -> None:
    found = list(tables(results))
    print("\n\n".join(map(as_text, found)))
    missed = [] if arguments.celery else missed_aims(results, checked_in_limits())
    for sentence in missed:
        print(f"not reached: {sentence}")
    about = _about(arguments)
    if arguments.json is not None:
        document = {**about, "results": results, "not_reached": missed}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if arguments.page is not None:
        told = [*map(as_markdown, found)]
        if missed:
            told.append("Aimed at and not reached:\n\n" + "\n".join(f"- {each}" for each in missed))
        measured = f"{_measured(arguments)[:-1]}, rounds: {arguments.rounds}."
        _put_into(arguments.page, FIGURES, "\n\n".join([measured, *told]))
    if arguments.plot is not None:
        from plot import plot

        arguments.plot.parent.mkdir(exist_ok=True)
        plot(results, arguments.plot)


def _about(arguments: argparse.Namespace) -> dict[str, Any]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": f"{machine}, Python {platform.python_version()}",
        "rounds": arguments.rounds,
        "quick": arguments.quick,
    }


def _measured(arguments: argparse.Namespace) -> str:
    about = _about(arguments)
    return f"Measured on {about['measured']} ({about['machine']})."


def _put_into(page: Path, name: str, told: str) -> None:
    begin, end = f"<!-- {name} -->\n", f"<!-- end of the {name} -->\n"
    before, _, rest = page.read_text("utf-8").partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{told}\n\n{end}{after}", "utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="once, with fewer requests, wider tolerances")
    add(
        "--scenario",
        action="append",
        choices=SCENARIOS,
        metavar="NAME",
        help="only this; again for more",
    )
    add("--contestant", action="append", choices=CONTESTANTS, help="only this; again for more")
    add("--rounds", type=int, help="3 of them, 1 with --quick")
    add(
        "--celery",
        action="store_true",
        help="real workers instead of the light operator; times only",
    )
    add("--profile", action="store_true", help="where the time goes, of ours and of the floor")
    add(
        "--limits",
        type=Path,
        metavar="PNG",
        help="how rates depend on the limits, as a picture, instead of all this",
    )
    add("--json", type=Path, help="a file for the figures")
    add("--plot", type=Path, help="a PNG")
    add("--page", type=Path, help="a page of Markdown to put the table into, between its marks")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.contestant = arguments.contestant or list(CONTESTANTS)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
