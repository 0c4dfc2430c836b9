"""The figures as pictures: beside the peers, and against the limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from measuring import Figures
from report import LABELS
from suite import CONTESTANTS, GROWTH
from tuning import Curves

_COLORS = {"ours": "#1f6f8b", "floor": "#99b2bd", "plain_celery": "#7ba05b", "older": "#c8553d"}
_THROUGHPUT = ("threads", "client each", "loop", "loops", "batch", "async batch")

Results = Mapping[str, Mapping[str, Figures]]


def plot(results: Results, path: Path) -> None:
    """Write the picture as a PNG."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    throughput, latency, connections = figure.subplots(1, 3, width_ratios=[2.2, 1, 1.2])
    shown = [name for name in _THROUGHPUT if name in results]
    heights = {
        contestant: [results[name].get(contestant, {}).get("rate") for name in shown]
        for contestant in CONTESTANTS
    }
    _bars(throughput, shown, heights)
    throughput.set_title("throughput, tasks a second (more is better)")
    throughput.legend(fontsize=8, ncols=4, loc="upper center")
    throughput.set_ylim(top=throughput.get_ylim()[1] * 4)
    one = results.get("sequential", {})
    heights = {
        contestant: [one.get(contestant, {}).get(name) for name in ("p50_ms", "p99_ms")]
        for contestant in CONTESTANTS
    }
    _bars(latency, ["p50", "p99"], heights)
    latency.set_title("one caller: latency, ms (less is better)")
    _growth(connections, results)
    figure.savefig(path, dpi=110)


def plot_limits(curves: Curves, measured: str, path: Path) -> None:
    """Write rates and connections against the size of the pools, as a PNG."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    rates, connections = figure.subplots(1, 2)
    colors = ("#1f6f8b", "#c8553d", "#7ba05b")
    highest = 0.0
    sizes: list[int] = []
    for (load, by_size), color in zip(curves.items(), colors, strict=True):
        sizes = list(by_size)
        found = list(by_size.values())
        rates.plot(sizes, [one["rate"] for one in found], marker="o", color=color, label=load)
        most = [one["broker_peak"] + one["backend_peak"] for one in found]
        connections.plot(sizes, most, marker="o", color=color, label=load)
        highest = max(highest, *most)
    allowed = [2 * size for size in sizes]
    connections.plot(sizes, allowed, color="#9db0b8", linestyle="--", label="both limits")
    rates.set_title("tasks a second (more is better)")
    connections.set_title("most connections at a time")
    connections.set_ylim(top=2 * highest)
    for axes in (rates, connections):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, sizes)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("broker_pool_limit = backend_pool_limit")
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(measured, x=0.995, ha="right", fontsize=7, color="#666677")
    figure.savefig(path, dpi=110)


def _bars(axes: Any, groups: list[str], heights: Mapping[str, list[float | None]]) -> None:
    width = 0.8 / len(heights)
    for place, (contestant, values) in enumerate(heights.items()):
        there = [(group, value) for group, value in enumerate(values) if value is not None]
        if not there:
            continue
        bars = axes.bar(
            [group + place * width for group, _ in there],
            [value for _, value in there],
            width,
            color=_COLORS[contestant],
            label=LABELS[contestant],
        )
        axes.bar_label(bars, fmt=_short, fontsize=6, padding=1)
    axes.set_yscale("log")
    axes.set_xticks([group + 0.4 - width / 2 for group in range(len(groups))], groups)
    axes.spines[["top", "right"]].set_visible(False)


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.{0 if value >= 10 else 2}f}"


def _growth(axes: Any, results: Results) -> None:
    for contestant in CONTESTANTS:
        points = [
            (figures[contestant]["requests"], figures[contestant])
            for scenario in GROWTH
            if contestant in (figures := results.get(scenario.name, {}))
        ]
        if points and "broker_peak" in points[0][1]:
            axes.plot(
                [requests for requests, _ in points],
                [found["broker_peak"] + found["backend_peak"] for _, found in points],
                marker="o",
                color=_COLORS[contestant],
                label=LABELS[contestant],
            )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests, of 24 threads")
    axes.set_title("most connections")
    axes.spines[["top", "right"]].set_visible(False)
