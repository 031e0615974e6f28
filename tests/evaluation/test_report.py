"""The report of size against quality: table, files and plots."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from smec_st.evaluation.report import Grid, Row, draw_lines, markdown_rows, print_rows, write_report
from smec_st.research.compare.plots import plot_by_bytes, plot_by_size, plot_proxy, plot_small_multiples
from smec_st.research.compare.proxy import correlations

METHODS = ["original", "truncate", "pca", *(f"rival-{i}" for i in range(22)), "smec"]


def row(method: str, dim: int, value: float, size: int | None = None, **extra: object) -> Row:
    return Row(
        method=method,
        dim=dim,
        bytes_per_vector=size or 4 * dim,
        metrics={"ndcg@10": value, "topk_distance": 1 - value, "pair_distance": 0.5, "document_overlap@10": value},
        extra={"learned_from_labels": method == "smec", **extra},
        collection=str(extra.get("collection", "toy")),
    )


@pytest.fixture
def rows():
    return [row("original", 32, 0.8), row("pca", 16, 0.7), row("pca", 8, 0.6), row("codes", 32, 0.75, 32)]


@pytest.fixture
def many():
    rng = np.random.default_rng(0)
    found = []
    for collection, width in (("texts", 384), ("images", 1024)):
        for method in METHODS:
            dims = [width] if method == "original" else [width // 2, width // 4, width // 8]
            found += [row(method, dim, rng.uniform(0.3, 0.9), collection=collection) for dim in dims]
        found.append(row("codes", width, 0.5, width // 8, collection=collection))
    return found


def test_row_is_one_flat_object_with_the_contract_first():
    flat = row("pca", 8, 0.6, seeds=3).to_dict()
    assert list(flat)[:5] == ["collection", "method", "dim", "bytes_per_vector", "ndcg@10"]
    assert flat["seeds"] == 3
    assert "collection" not in Row(method="pca", dim=8, bytes_per_vector=32, metrics={}).to_dict()


def test_grid_lines_up_sizes_by_bytes(rows):
    grid = Grid(rows)
    assert grid.heads == [("32 dims", "128 B"), ("16 dims", "64 B"), ("8 dims", "32 B")]
    lines = {method: [cell and cell.metrics["ndcg@10"] for cell in cells] for method, cells in grid.lines}
    assert lines == {"original": [0.8, None, None], "pca": [None, 0.7, 0.6], "codes": [None, None, 0.75]}


def test_markdown_has_the_best_of_a_size_in_bold_and_marks(rows):
    text = markdown_rows(rows, mark=lambda cell: " ~" if cell.method == "pca" else "")
    assert text.splitlines()[2:] == [
        "| original | **0.800** |  |  |",
        "| pca |  | **0.700** ~ | 0.600 ~ |",
        "| codes |  |  | **0.750** |",
    ]


def test_print_rows_into_a_file_breaks_no_line(capsys):
    wide = [row(method, dim, 0.5) for method in ("original", "pca") for dim in range(400, 0, -10)]
    print_rows(wide, "toy")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.count("0.500") == 40 for line in lines)


def test_write_report_writes_the_same_rows_as_json_and_csv(rows, tmp_path):
    write_report(rows, tmp_path, "toy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.json", "report.png"]
    flat = json.loads((tmp_path / "report.json").read_text())
    assert flat == [one.to_dict() for one in rows]
    with (tmp_path / "report.csv").open(newline="") as file:
        assert [float(line["ndcg@10"]) for line in csv.DictReader(file)] == [line["ndcg@10"] for line in flat]


def test_draw_lines_gives_each_of_many_methods_a_look_of_its_own(many):
    axes = Figure().subplots()
    draw_lines(
        axes,
        [one for one in many if one.collection == "texts"],
        lambda r: r.dim,
        lambda r: r.metrics["ndcg@10"],
        {"smec"},
    )
    looks = {
        line.get_label(): (to_rgba(line.get_color()), line.get_linestyle(), line.get_marker())
        for line in axes.get_lines()
    }
    assert set(looks) == {*METHODS, "codes"}
    assert len(set(looks.values())) == len(looks)
    widths = {line.get_label(): line.get_linewidth() for line in axes.get_lines()}
    assert widths.pop("smec") > 1.5 * max(widths.values())


def test_draw_lines_keeps_ticks_apart():
    axes = Figure().subplots()
    draw_lines(axes, [row("pca", dim, 0.5) for dim in (100, 99, 50, 49)], lambda r: r.dim, lambda r: 0.5)
    assert sorted(axes.get_xticks()) == [50, 100]


@pytest.mark.parametrize("collections", [["texts"], ["texts", "images"]])
def test_plots_of_a_comparison_are_written_whole(many, tmp_path, collections):
    rows = [one for one in many if one.collection in collections]
    for plot in (plot_by_size, plot_by_bytes, plot_small_multiples):
        plot(rows, tmp_path / f"{plot.__name__}.png", "smec")
    plot_proxy(rows, correlations(rows), tmp_path / "plot_proxy.png")
    written = sorted(tmp_path.iterdir())
    assert [path.stem for path in written] == ["plot_by_bytes", "plot_by_size", "plot_proxy", "plot_small_multiples"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_without_matplotlib_a_report_has_its_tables_and_says_what_is_missing(rows, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    says = r'report.png is not drawn without matplotlib. Install it with `pip install "smec-st\[plots\]"`'
    with pytest.warns(UserWarning, match=says):
        write_report(rows, tmp_path, "toy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.json"]
