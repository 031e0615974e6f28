"""The table of size against quality: on screen, as JSON, CSV and plot."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.table

from smec_st.files import write_text


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one size.

    Attributes:
        method: Name.
        dim: Numbers per vector.
        bytes_per_vector: Storage of one vector.
        metrics: Means over the judged queries, fractions in [0, 1].
        extra: Anything else worth keeping, for instance the seed.
    """

    method: str
    dim: int
    bytes_per_vector: int
    metrics: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The flat object of the report file."""
        return {
            "method": self.method,
            "dim": self.dim,
            "bytes_per_vector": self.bytes_per_vector,
            **self.metrics,
            **self.extra,
        }


def write_json(rows: Sequence[Row], path: str | Path) -> None:
    """A JSON list, one object per method and size; written aside, then renamed."""
    write_text(Path(path), json.dumps([row.to_dict() for row in rows], indent=1) + "\n")


def write_report(rows: Sequence[Row], folder: str | Path, title: str) -> None:
    """Write ``report.json``, ``report.csv`` and ``report.png`` into a folder."""
    folder = Path(folder)
    write_json(rows, folder / "report.json")
    flat = [row.to_dict() for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    draft = folder / "report.csv.partial"
    with draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)
    os.replace(draft, folder / "report.csv")
    plot_rows(rows, folder / "report.png", title)


def print_rows(rows: Sequence[Row], title: str, metric: str = "ndcg@10") -> None:
    """Methods down, sizes across, with bytes per vector."""
    from rich.console import Console

    sizes = sorted({row.dim for row in rows}, reverse=True)
    table = rich.table.Table(title=f"{title}: {_label(metric)}")
    table.add_column("method")
    for dim in sizes:
        table.add_column(f"{dim} dims\n{4 * dim:,} B", justify="right")
    best = {dim: max(row.metrics[metric] for row in rows if row.dim == dim) for dim in sizes}
    for method in dict.fromkeys(row.method for row in rows):
        values = {row.dim: row.metrics[metric] for row in rows if row.method == method}
        cells = [
            ""
            if dim not in values
            else f"[bold]{values[dim]:.3f}[/]"
            if values[dim] == best[dim]
            else f"{values[dim]:.3f}"
            for dim in sizes
        ]
        table.add_row(method, *cells)
    Console().print(table)


def plot_rows(rows: Sequence[Row], path: str | Path, title: str, metric: str = "ndcg@10") -> None:
    """Quality against size, one line per method, the original as a level line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row.method for row in rows):
        points = sorted((row.dim, row.metrics[metric]) for row in rows if row.method == method)
        if method == "original":
            axes.axhline(points[0][1], color="0.4", linestyle="--", label=f"original ({points[0][0]} dims)")
        else:
            strong = method not in ("truncate", "pca")
            axes.plot(*zip(*points, strict=True), marker="o", linewidth=2.5 if strong else 1.3, label=method)
    sizes = sorted({row.dim for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("numbers per vector (4 bytes each)")
    axes.set_ylabel(_label(metric))
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    draft = Path(path).with_name(Path(path).name + ".partial")
    figure.savefig(draft, dpi=150, format="png")
    os.replace(draft, path)


def _label(metric: str) -> str:
    return metric.replace("ndcg", "nDCG").replace("recall", "Recall").replace("mrr", "MRR")
