"""Tables of quality by size: on screen, as JSON, CSV, Markdown and as a plot."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.table

from smec_st.system.files import write_text
from smec_st.system.optional import how_to_install, is_installed, load_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC = "ndcg@10"
UNTRAINED = ("original", "truncate", "pca")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of one method at one size.

    Attributes:
        method: Name of the method.
        dim: Dimensions per vector.
        bytes_per_vector: Storage per vector.
        metrics: Means over the judged queries, in [0, 1].
        extra: Further values for the report files, for instance the number of seeds.
        collection: Name of the collection, in a report on several.
    """

    method: str
    dim: int
    bytes_per_vector: int
    metrics: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)
    collection: str = ""

    @property
    def is_float32(self) -> bool:
        """Whether the vectors are plain float32."""
        return self.bytes_per_vector == 4 * self.dim

    def to_dict(self) -> dict[str, Any]:
        """Return the row as one flat dictionary, as in the report files."""
        return {
            **({"collection": self.collection} if self.collection else {}),
            "method": self.method,
            "dim": self.dim,
            "bytes_per_vector": self.bytes_per_vector,
            **self.metrics,
            **self.extra,
        }


# -- files ------------------------------------------------------------------------------------------------------------


def write_json(rows: Sequence[Row], path: str | Path) -> None:
    """Write rows as a JSON list, one object per method and size. The file appears only when it is complete."""
    write_text(Path(path), json.dumps([row.to_dict() for row in rows], indent=1) + "\n")


def write_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write rows as CSV, one line per method and size. The file appears only when it is complete."""
    flat = [row.to_dict() for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(Path(path), text.getvalue())


def write_report(rows: Sequence[Row], folder: str | Path, title: str) -> None:
    """Write ``report.json``, ``report.csv`` and, if matplotlib is installed, ``report.png`` into a folder."""
    folder = Path(folder)
    write_json(rows, folder / "report.json")
    write_csv(rows, folder / "report.csv")
    if can_plot(folder / "report.png"):
        plot_rows(rows, folder / "report.png", title)


def can_plot(path: Path) -> bool:
    """Return whether matplotlib is installed; if it is not, warn that this plot is left out.

    Results that took long to measure must not be lost because there is nothing to draw them with.
    """
    if not is_installed("matplotlib"):
        warnings.warn(f"{path.name} is not drawn without matplotlib. {how_to_install('matplotlib')}", stacklevel=3)
        return False
    return True


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches.

    Raises:
        DataError: If matplotlib is not installed.
    """
    figure: Figure = load_optional("matplotlib.figure", "a plot").Figure(figsize=(width, height), layout="constrained")
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG file. The file appears only when it is complete."""
    draft = Path(path).with_name(Path(path).name + ".partial")
    figure.savefig(draft, dpi=150, format="png")
    os.replace(draft, path)


# -- table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """nDCG@10 of one collection: one line per method, one column per size, bytes per vector descending."""

    rows: Sequence[Row]

    @property
    def sizes(self) -> list[int]:
        """Bytes per vector of the columns."""
        return sorted({row.bytes_per_vector for row in self.rows}, reverse=True)

    @property
    def heads(self) -> list[tuple[str, str]]:
        """Dimensions (where a method stores float32) and bytes of each column."""
        plain = {row.bytes_per_vector: f"{row.dim} dims" for row in self.rows if row.is_float32}
        return [(plain.get(size, ""), f"{size:,} B") for size in self.sizes]

    @property
    def lines(self) -> list[tuple[str, list[Row | None]]]:
        """Each method with its row per column, or None where it has no such size."""
        methods: dict[str, dict[int, Row]] = {}
        for row in self.rows:
            methods.setdefault(row.method, {})[row.bytes_per_vector] = row
        return [(method, [by_size.get(size) for size in self.sizes]) for method, by_size in methods.items()]

    def text(self, row: Row | None, bold: str) -> str:
        """Format a cell; ``bold`` is the pattern for the best value of a column."""
        if row is None:
            return ""
        best = max(other.metrics[METRIC] for other in self.rows if other.bytes_per_vector == row.bytes_per_vector)
        text = f"{row.metrics[METRIC]:.3f}"
        return bold.format(text) if row.metrics[METRIC] == best else text


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Print a :class:`Grid`, with the best value of each size in bold."""
    from rich.console import Console

    grid = Grid(rows)
    table = rich.table.Table(title=f"{title}: {label_of(METRIC)}")
    table.add_column("method")
    for dims, size in grid.heads:
        table.add_column(f"{dims}\n{size}", justify="right")
    for method, cells in grid.lines:
        table.add_row(method, *(grid.text(row, "[bold]{}[/]") for row in cells))
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a file has no width, so lines need not be wrapped
    console.print(table)


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; the first column is aligned left, the others right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def markdown_rows(rows: Sequence[Row], mark: Callable[[Row], str] = lambda row: "") -> str:
    """Format the table of :func:`print_rows` in Markdown.

    Args:
        rows: Rows of one collection.
        mark: Returns text to append to a row's value.
    """
    grid = Grid(rows)
    head = [label_of(METRIC), *(f"{dims}<br>{size}" if dims else size for dims, size in grid.heads)]
    lines = [
        [method, *(grid.text(row, "**{}**") + (mark(row) if row else "") for row in cells)]
        for method, cells in grid.lines
    ]
    return markdown_table(head, lines)


# -- plot -------------------------------------------------------------------------------------------------------------

STRONG = "#c1121f"
QUIET = ("#8a8a8a", "#4c4c4c", "#b5a48b")  # methods without training
MUTED = ("#4477aa", "#66ccee", "#228833", "#bb9900", "#aa3377", "#ee8866", "#6a51a3", "#44aa99")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")


def plot_rows(rows: Sequence[Row], path: str | Path, title: str) -> None:
    """Plot quality against size: one line per method, and the original as a horizontal line."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    draw_lines(axes, rows, lambda row: row.dim, lambda row: row.metrics[METRIC])
    label_sizes(axes, "numbers per vector (4 bytes each)")
    axes.set_ylabel(label_of(METRIC))
    axes.set_title(title)
    axes.legend()
    save_figure(figure, path)


def draw_lines(
    axes: Axes,
    rows: Sequence[Row],
    x: Callable[[Row], float],
    y: Callable[[Row], float],
    strong: Collection[str] | None = None,
    order: Sequence[str] | None = None,
) -> None:
    """Draw one line per method; the line of the original is horizontal.

    Args:
        axes: Axes to draw on; the x axis becomes logarithmic.
        rows: Rows of one collection.
        x: Returns the x coordinate of a row, above 0.
        y: Returns the y coordinate of a row.
        strong: Methods to emphasise; by default all that are trained.
        order: All methods of the figure, so that each looks the same in every panel; by default those of ``rows``.
    """
    order = order or list(dict.fromkeys(row.method for row in rows))
    strong = [name for name in order if name not in UNTRAINED] if strong is None else strong
    for method in dict.fromkeys(row.method for row in rows):
        points = sorted((x(row), y(row)) for row in rows if row.method == method)
        if method == "original":
            axes.axhline(points[0][1], color="0.25", linestyle=(0, (5, 3)), linewidth=1.2, label="original", zorder=1)
        else:
            axes.plot(*zip(*points, strict=True), label=method, **_style(method, order, strong))
    axes.set_xscale("log", base=2)
    axes.set_xticks(thin_ticks({x(row) for row in rows}, 1.2))
    axes.minorticks_off()
    axes.grid(alpha=0.25)


def thin_ticks(places: Collection[float], ratio: float) -> list[float]:
    """Thin out ticks that would overlap on a logarithmic axis: of two within ``ratio`` the greater is kept."""
    ticks: list[float] = []
    for place in sorted(places, reverse=True):
        if not ticks or ticks[-1] / place >= ratio:
            ticks.append(place)
    return ticks


def _style(method: str, order: Sequence[str], strong: Collection[str]) -> dict[str, Any]:
    """Emphasised methods are bold, methods without training grey; the others differ in colour, marker and dashes."""
    if method in strong:
        position = [name for name in order if name in strong].index(method)
        color = STRONG if position == 0 else MUTED[position % len(MUTED)]
        return {"color": color, "linewidth": 2.8, "marker": "o", "markersize": 6, "zorder": 5}
    if method in UNTRAINED:
        return {"color": QUIET[UNTRAINED.index(method)], "linewidth": 1.4, "marker": "o", "markersize": 4, "zorder": 2}
    number = [name for name in order if name not in strong and name not in UNTRAINED].index(method)
    return {
        "color": MUTED[number % len(MUTED)],
        "linestyle": DASHES[number // len(MUTED) % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "linewidth": 1.2,
        "markersize": 4.5,
        "alpha": 0.9,
        "zorder": 3,
    }


def label_sizes(axes: Axes, what: str) -> None:
    """Label the x axis, and write its ticks as plain numbers."""
    axes.set_xticks(axes.get_xticks(), [f"{tick:g}" for tick in axes.get_xticks()])
    axes.set_xlabel(what)


def label_of(metric: str) -> str:
    """Return the name of a metric as it is written in prose."""
    return metric.replace("ndcg", "nDCG").replace("recall", "Recall").replace("mrr", "MRR")
