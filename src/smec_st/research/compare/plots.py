"""The figures of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smec_st.evaluation.report import MARKERS, MUTED, Row, draw_lines, label_of, label_sizes, new_figure, save_figure
from smec_st.research.compare.proxy import POOLED, Correlation, share_kept
from smec_st.research.compare.scoring import DISTANCES
from smec_st.research.compare.table import METRIC
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

BYTES = "bytes per vector"
TIMES_SMALLER = "times smaller than the original"


def plot_by_size(rows: Sequence[Row], path: Path, reference: str) -> None:
    """Plot quality against dimensions, for methods that store float32; with several collections, their mean."""
    float32 = [row for row in rows if row.is_float32]
    _plot(float32, _methods(rows), path, reference, lambda row: row.dim, "numbers per vector (4 bytes each)")


def plot_by_bytes(rows: Sequence[Row], path: Path, reference: str) -> None:
    """Plot quality against bytes per vector, quantisers included; with several collections, their mean."""
    _plot(rows, _methods(rows), path, reference, lambda row: row.bytes_per_vector, BYTES)


def _plot(
    rows: Sequence[Row], methods: Sequence[str], path: Path, reference: str, x: Callable[[Row], float], label: str
) -> None:
    collections = _collections(rows)
    quality, title = label_of(METRIC), collections[0]
    if len(collections) > 1:
        rows, x, label = _means(rows), lambda row: float(row.extra["ratio"]), TIMES_SMALLER
        quality, title = f"share of the original's {quality}", f"mean over {', '.join(collections)}"
    figure = new_figure(9.5, 5.6)
    axes = figure.subplots()
    draw_lines(axes, rows, x, _quality, {reference}, methods)
    label_sizes(axes, label)
    axes.set_ylabel(quality)
    axes.set_title(title)
    _legend_outside(figure, [axes])
    save_figure(figure, path)


def _means(rows: Sequence[Row]) -> list[Row]:
    """Average the share of the original's quality, at ratios that a method has on every collection."""
    width = {row.collection: row.bytes_per_vector for row in rows if row.method == "original"}
    shares: dict[tuple[str, float], list[float]] = {}
    for row, share in [*share_kept(rows), *((row, 1.0) for row in rows if row.method == "original")]:
        shares.setdefault((row.method, width[row.collection] / row.bytes_per_vector), []).append(share)
    return [
        Row(
            method=method,
            dim=1,
            bytes_per_vector=4,
            metrics={METRIC: float(np.mean(values))},
            extra={"ratio": ratio},
        )
        for (method, ratio), values in shares.items()
        if len(values) == len(width)
    ]


def plot_small_multiples(rows: Sequence[Row], path: Path, reference: str) -> None:
    """Plot quality against bytes per vector, one panel per collection."""
    collections, methods = _collections(rows), _methods(rows)
    columns = min(2, len(collections))
    lines = math.ceil(len(collections) / columns)
    figure = new_figure(5.2 * columns + 2.4, 3.9 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, collection in zip(panels, collections, strict=False):
        of_collection = [row for row in rows if row.collection == collection]
        draw_lines(axes, of_collection, lambda row: row.bytes_per_vector, _quality, {reference}, methods)
        label_sizes(axes, BYTES)
        axes.tick_params(axis="x", rotation=60, labelsize=7)
        axes.set_title(collection)
        axes.set_ylabel(label_of(METRIC))
    for axes in panels[len(collections) :]:
        axes.set_axis_off()
    _legend_outside(figure, list(panels[: len(collections)]))
    save_figure(figure, path)


def plot_proxy(rows: Sequence[Row], found: Sequence[Correlation], path: Path) -> None:
    """Plot the share of quality kept against each distance, one panel per distance, one point per method and size."""
    kept, collections = share_kept(rows), _collections(rows)
    figure = new_figure(13, 4.3)
    panels = figure.subplots(1, len(DISTANCES), sharey=True)
    for axes, distance in zip(panels, DISTANCES, strict=True):
        for row, share in kept:
            number = collections.index(row.collection)
            color, marker = MUTED[number % len(MUTED)], MARKERS[number % len(MARKERS)]
            face = "none" if row.extra["learned_from_labels"] else color
            axes.plot(row.metrics[distance], share, marker, color=color, markerfacecolor=face, markersize=5, alpha=0.8)
        axes.axhline(1, color="0.25", linestyle=(0, (5, 3)), linewidth=1)
        pooled = {c.methods: c.spearman for c in found if (c.collection, c.distance) == (POOLED, distance)}
        text = ", ".join(f"{methods} {value:.2f}" for methods, value in pooled.items() if value is not None)
        axes.set_title(f"Spearman: {text or 'not defined'}", fontsize=10)
        axes.set_xlabel(distance)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(f"share of the original's {label_of(METRIC)}")
    lines = load_optional("matplotlib.lines", "a plot")
    handles = [
        lines.Line2D([], [], color=MUTED[i % len(MUTED)], marker=MARKERS[i % len(MARKERS)], linestyle="", label=name)
        for i, name in enumerate(collections)
    ]
    handles.append(
        lines.Line2D([], [], color="0.3", marker="o", markerfacecolor="none", linestyle="", label="with labels")
    )
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    save_figure(figure, path)


def _quality(row: Row) -> float:
    return row.metrics[METRIC]


def _collections(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.collection for row in rows))


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows))


def _legend_outside(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend for all panels, next to them; methods with the highest lines come first."""
    handles: dict[str, Line2D] = {}
    heights: dict[str, list[float]] = {}
    for axes in panels:
        for line in axes.get_lines():
            name = str(line.get_label())
            handles.setdefault(name, line)
            heights.setdefault(name, []).append(float(np.mean(np.asarray(line.get_ydata(), dtype=float))))
    order = sorted(handles, key=lambda name: -float(np.mean(heights[name])))
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        handlelength=3.2,
    )
