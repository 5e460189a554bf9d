"""``python -m tests.benchmarks.plots FILE.json FOLDER``: draw what a run has seen.

``growth.png``, ``latency.png`` and ``batch.png``; each only if the run had its part.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import typing as t

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

#: Points, by what gives a curve its colour and what gives it its stroke; both label it.
Curves = dict[tuple[str, str], list[tuple[float, float]]]
Parts = dict[str, list[dict[str, t.Any]]]
SIZE, DOTS = (8, 4.2), 150  # inches, and dots to the inch
STROKES = ("-", "--")
#: Columns of the table of batch sizes that are jobs/s too.
BESIDE = ("by hand", "pgbench")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.plots", description=__doc__)
    parser.add_argument("file", type=pathlib.Path, help="what --json has written")
    parser.add_argument("folder", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    parts = json.loads(arguments.file.read_text())["parts"]
    for name, draw in {"growth": draw_growth, "latency": draw_latency, "batch": draw_batch}.items():
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        if draw(axes, parts):
            figure.savefig(arguments.folder / f"{name}.png", dpi=DOTS)
            print(arguments.folder / f"{name}.png")
        pyplot.close(figure)


def draw_growth(axes: Axes, parts: Parts) -> bool:
    """Draw the milliseconds of a claim and of a settlement against the rows of the table."""
    curves: Curves = collections.defaultdict(list)
    for line in _lines(parts, "growth", "at rest"):
        verb, way, _ = line["name"].split(", ")
        curves[way, verb].append((line["more"]["rows"], line["median"]))
    return _draw(axes, curves, "rows in the table", "ms, commit included (median)")


def draw_latency(axes: Axes, parts: Parts) -> bool:
    """Draw the milliseconds from a commit to its receipt against the claims that wait, jobs sent singly."""
    curves: Curves = collections.defaultdict(list)
    for line in _lines(parts, "latency", "from commit to receipt"):
        more = line["more"]
        if more["to claim"] is not None and re.search(r"one by one|by 1$", more["jobs"]):
            curves[line["name"], "p50"].append((more["waiters"], line["median"]))
            curves[line["name"], "p95"].append((more["waiters"], more["p95"]))
    return _draw(axes, curves, "claims that wait", "ms from commit to receipt")


def draw_batch(axes: Axes, parts: Parts) -> bool:
    """Draw jobs a second against the jobs of one request, whose number ends the name of a line."""
    curves: Curves = collections.defaultdict(list)
    for line in _lines(parts, "http", "batch"):
        if found := re.search(r"\d+$", line["name"]):
            figures = {"exchange": line["median"]} | {name: line["more"].get(name) for name in BESIDE}
            for name, rate in figures.items():
                curves[name, ""] += [] if rate is None else [(int(found[0]), rate)]
    return _draw(axes, curves, "jobs in one request", "jobs/s (median)")


def _lines(parts: Parts, part: str, title: str) -> list[dict[str, t.Any]]:
    """Return the lines of the tables of a part whose titles say this."""
    tables = [table for table in parts.get(part, ()) if title in table["title"]]
    return [line for table in tables for line in table["lines"]]


def _draw(axes: Axes, curves: Curves, across: str, up: str) -> bool:
    """Draw curves over a logarithmic axis; return whether there is something to see."""
    curves = {names: sorted(points) for names, points in curves.items() if len(points) > 1}
    colours = list(dict.fromkeys(colour for colour, _ in curves))
    strokes = list(dict.fromkeys(stroke for _, stroke in curves))
    for (colour, stroke), points in curves.items():
        (curve,) = axes.plot(*zip(*points, strict=True), marker="o", markersize=4)
        curve.set(color=f"C{colours.index(colour)}", linestyle=STROKES[strokes.index(stroke)])
        curve.set_label(", ".join(filter(None, (colour, stroke))))
    if curves:
        _dress(axes, sorted({x for points in curves.values() for x, _ in points}), across, up)
    return bool(curves)


def _dress(axes: Axes, ticks: t.Sequence[float], across: str, up: str) -> None:
    axes.set(xlabel=across, ylabel=up, xscale="log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


if __name__ == "__main__":
    main()
