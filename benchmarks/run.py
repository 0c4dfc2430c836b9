"""
The pressure test: wall time, and peak and settled connections, against a real Redis.

``nox -s bench`` runs it. Any breach of a connection bound is a non-zero exit
that names it. ``--json FILE`` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import asdict, frozen

from light_operator import LightOperator
from local_redis import LocalRedis
from pressure import SCENARIOS, Load, Settings
from watching import ConnectionSampler, connections, open_redis


@frozen
class Limits:
    """A client's connection budgets."""

    broker: int
    backend: int
    poll_concurrency: int


#: As on the older client's page: its defaults, and its relaxed ones.
LIMITS = {"default": Limits(8, 8, 4), "relaxed": Limits(32, 32, 32)}
SETTLE_TIMEOUT = 10.0


@frozen
class Figures:
    """What one scenario took; seconds and connections."""

    scenario: str
    limits: str
    requests: int
    wall: float
    ideal: float
    broker_peak: int
    backend_peak: int
    settled_after: float | None

    def breaches(self) -> Iterator[str]:
        """Yield a sentence for each bound that was not kept."""
        limits = LIMITS[self.limits]
        for role, peak, limit in (
            ("broker", self.broker_peak, limits.broker),
            ("backend", self.backend_peak, limits.backend),
        ):
            if peak > limit:
                yield f"{self.scenario} ({self.limits}): {peak} {role} connections, limit {limit}"
        if self.settled_after is None:
            yield f"{self.scenario} ({self.limits}): connections left after closing"


def measure(url: str, scenario: str, limits: str, load: Load) -> Figures:
    """Run one scenario once and return its figures."""
    chosen = LIMITS[limits]
    settings: Settings = {
        "operator_name": "bench",
        "operator_version": "v1",
        "broker_url": url,
        "broker_pool_limit": chosen.broker,
        "backend_pool_limit": chosen.backend,
        "backend_poll_concurrency": chosen.poll_concurrency,
    }
    with ConnectionSampler(url, interval=0.005) as sampler:
        began = time.perf_counter()
        SCENARIOS[scenario](settings, load)
        wall = time.perf_counter() - began
        settled_after = _settle(url)
    return Figures(
        scenario,
        limits,
        load.requests,
        wall,
        load.ideal(scenario),
        sampler.peak["broker"],
        sampler.peak["backend"],
        settled_after,
    )


def _settle(url: str) -> float | None:
    """Wait until no connection is left; return after how many seconds, ``None`` if never."""
    began = time.monotonic()
    with open_redis(url) as server:
        while any(connections(server).values()):
            if time.monotonic() - began > SETTLE_TIMEOUT:
                return None
            time.sleep(0.005)
    return time.monotonic() - began


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    arguments = _parse()
    load = Load(
        arguments.requests,
        arguments.threads,
        arguments.coroutines,
        arguments.delay / 1000,
        arguments.concurrency,
    )
    figures = []
    print(f"{'scenario':<28}{'limits':<9}{'requests':>8}{'wall s':>8}{'ideal s':>8}", end="")
    print(f"{'broker':>8}{'backend':>8}{'settled s':>10}")
    with (
        LocalRedis() as server,
        LightOperator(server.url, delay=load.delay, concurrency=load.operator_concurrency),
    ):
        for limits in LIMITS:
            for scenario in SCENARIOS:
                found = measure(server.url, scenario, limits, load)
                figures.append(found)
                settled = "never" if found.settled_after is None else f"{found.settled_after:.2f}"
                print(f"{scenario:<28}{limits:<9}{found.requests:>8}{found.wall:>8.2f}", end="")
                print(f"{found.ideal:>8.2f}{found.broker_peak:>8}{found.backend_peak:>8}", end="")
                print(f"{settled:>10}")
    if arguments.json is not None:
        _keep(arguments.json, load, figures)
    breaches = [breach for found in figures for breach in found.breaches()]
    for breach in breaches:
        print(f"bound not kept: {breach}", file=sys.stderr)
    return 1 if breaches else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--threads", type=int, default=24)
    parser.add_argument("--coroutines", type=int, default=96)
    parser.add_argument("--delay", type=float, default=150, help="the operator's, in milliseconds")
    parser.add_argument("--concurrency", type=int, default=32, help="the operator's")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser.parse_args()


def _keep(path: Path, load: Load, figures: list[Figures]) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    document = {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "load": asdict(load),
        "figures": [asdict(found) for found in figures],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
