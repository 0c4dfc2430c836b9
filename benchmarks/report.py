"""The figures as a table, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from measuring import Figures
from suite import CONTESTANTS

#: The measures that have a column: heading, and format.
MEASURES = {
    "requests": ("requests", "{:,.0f}"),
    "wall": ("wall s", "{:.2f}"),
    "rate": ("tasks/s", "{:,.0f}"),
    "cpu_us": ("CPU µs", "{:,.0f}"),
    "p50_ms": ("p50 ms", "{:.2f}"),
    "p99_ms": ("p99 ms", "{:.2f}"),
    "bytes_each": ("bytes each", "{:,.0f}"),
    "idle_cpu": ("idle CPU", "{:.2%}"),
    "idle_commands": ("idle cmd/s", "{:.1f}"),
    "commands": ("cmds/task", "{:.2f}"),
    "broker_peak": ("broker", "{:.0f}"),
    "backend_peak": ("backend", "{:.0f}"),
    "settled": ("left", "{:.0f}"),
}
WORK = ("requests", "wall", "rate", "cpu_us", "p50_ms", "p99_ms", "commands")
PENDING = ("requests", "bytes_each", "idle_cpu", "idle_commands")
CONNECTIONS = ("broker_peak", "backend_peak", "settled")
LABELS = {"ours": "ours", "floor": "floor", "plain_celery": "plain Celery", "older": "0.4.7"}

Rows = list[list[str]]


def tables(results: Mapping[str, Mapping[str, Figures]]) -> Iterator[Rows]:
    """Yield the table of what does work, and that of what is pending; headings first."""
    for is_pending, measures in ((False, WORK), (True, PENDING)):
        chosen = {
            name: figures
            for name, figures in results.items()
            if any("bytes_each" in found for found in figures.values()) == is_pending
        }
        if chosen:
            yield _table(chosen, [*measures, *CONNECTIONS], "bytes_each" if is_pending else "rate")


def _table(
    results: Mapping[str, Mapping[str, Figures]], measures: list[str], compared: str
) -> Rows:
    rows = [["scenario", "", *(MEASURES[name][0] for name in measures), "ours is"]]
    for scenario, figures in results.items():
        first = True
        for contestant in CONTESTANTS:
            if contestant not in figures:
                continue
            found = figures[contestant]
            cells = [
                MEASURES[name][1].format(found[name]) if name in found else "" for name in measures
            ]
            ratio = ""
            if contestant != "ours" and "ours" in figures:
                ratio = f"{figures['ours'][compared] / found[compared]:.2f} ×"
            if contestant == "ours" and "ideal" in found:
                ratio = f"{found['wall'] / found['ideal']:.2f} ideal"
            rows.append([scenario if first else "", LABELS[contestant], *cells, ratio])
            first = False
    return rows


def as_text(rows: Rows) -> str:
    """Align the columns for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def as_markdown(rows: Rows) -> str:
    """Write a table of Markdown."""
    head, *body = rows
    rule = ["---", "---", *("--:" for _ in head[2:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
