"""Compare methods on collections: plan the cells, run those that are missing, and write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smec_st.data import Collection, DataError
from smec_st.evaluation.report import Row, write_csv, write_json
from smec_st.evaluation.statistics import Lossless, lossless
from smec_st.research.baselines import Method
from smec_st.research.compare.cells import Cell, Result, Source, fingerprint, versions, write_object
from smec_st.research.compare.document import markdown_report
from smec_st.research.compare.plots import plot_by_bytes, plot_by_size, plot_proxy, plot_small_multiples
from smec_st.research.compare.proxy import Correlation, Recommendation, correlations, recommendations
from smec_st.research.compare.registry import ALWAYS
from smec_st.research.compare.runner import Outcome, run_cells
from smec_st.research.compare.scoring import test_split
from smec_st.research.compare.table import rows_of
from smec_st.stages import check_dims, default_dims
from smec_st.system.files import write_text


@dataclass(frozen=True)
class Plan:
    """The cells of a comparison.

    Attributes:
        collections: Names of the collections, in the order given.
        cells: All cells, in the order in which they are run.
        reference: Method that the others are compared with.
        out: Folder for cells and report.
    """

    collections: tuple[str, ...]
    cells: tuple[Cell, ...]
    reference: str
    out: Path

    @property
    def missing(self) -> int:
        """Number of cells that have not been run."""
        return sum(not cell.is_done(self.out) for cell in self.cells)


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        rows: One row per collection, method and size.
        lossless: Smallest sizes without loss.
        correlations: Correlations of distances with quality.
        recommended: Sizes recommended without labels.
        failed: Cells that raised an exception.
    """

    rows: list[Row]
    lossless: list[Lossless]
    correlations: list[Correlation]
    recommended: list[Recommendation]
    failed: list[Outcome]


def plan(
    sources: Sequence[Source],
    methods: Mapping[str, Method],
    dims: Sequence[Sequence[int]] | None,
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    labels: bool = True,
    reference: str | None = None,
) -> Plan:
    """Check the input and list the cells: seed by seed, cheap methods and small collections first.

    Args:
        sources: The collections.
        methods: Methods by name, cheap ones first; see :func:`~smec_st.research.compare.choose`.
        dims: Sizes: one list for all collections, or one list for each; None for each collection's width and its
            halvings.
        out: A new or empty folder, or that of an earlier comparison, whose finished cells are reused.
        seeds: Random seeds; a method that is not random is fitted with the first one only.
        labels: Whether methods may use training judgements.
        reference: Method that the others are compared with; by default "smec", or "original" if that is missing.

    Raises:
        DataError: If the input cannot be used. Nothing has been written then.
    """
    if reference is None:
        reference = "smec" if "smec" in methods else "original"
    _check_options(len(sources), methods, dims, out, seeds, reference)
    cells: list[Cell] = []
    size_of: dict[str, int] = {}
    for number, source in enumerate(sources):
        collection = source.load()
        if collection.name in size_of:
            raise DataError(f"two collections are named {collection.name}.")
        size_of[collection.name] = len(collection.corpus)
        cells += _cells_of(
            source, collection, methods, None if dims is None else dims[number % len(dims)], seeds, labels
        )
    rank = list(methods)
    cells.sort(key=lambda cell: (seeds.index(cell.seed), rank.index(cell.name), size_of[cell.collection]))
    return Plan(tuple(size_of), tuple(cells), reference, out)


def _check_options(
    sources: int,
    methods: Mapping[str, Method],
    dims: Sequence[Sequence[int]] | None,
    out: Path,
    seeds: Sequence[int],
    reference: str,
) -> None:
    if dims is not None and len(dims) not in (1, sources):
        raise DataError(f"give sizes once, or once for each of {sources} collections; got {len(dims)} lists.")
    for name in (*ALWAYS, reference):
        if name not in methods:
            raise DataError(f"{name} is not among the methods compared: {', '.join(methods)}.")
    if len(set(seeds)) != len(seeds) or not seeds or min(seeds) < 0:
        raise DataError(f"seeds must be whole numbers of 0 or more, each once, got {', '.join(map(str, seeds))}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (out / "cells").is_dir():
        raise DataError(f"{out} exists already and holds no comparison; choose another --out or remove it.")


def _cells_of(
    source: Source,
    collection: Collection,
    methods: Mapping[str, Method],
    dims: Sequence[int] | None,
    seeds: Sequence[int],
    labels: bool,
) -> list[Cell]:
    collection.judged(test_split(collection))
    if labels:
        collection.judged("train")
    width = collection.corpus.shape[1]
    try:
        sizes = check_dims(dims or default_dims(width), width)
    except ValueError as error:
        raise DataError(str(error)) from error
    digest = fingerprint(collection)
    return [
        Cell(source, collection.name, digest, name, method, sizes, seed, labels)
        for name, method in methods.items()
        for seed in (seeds if method.is_random else seeds[:1])
    ]


def compare(planned: Plan, jobs: int = 1, on_outcome: Callable[[Outcome], None] | None = None) -> Comparison:
    """Run the missing cells of a plan, and write the report.

    Args:
        planned: The plan, from :func:`plan`.
        jobs: Number of processes.
        on_outcome: Called with the outcome of each cell as soon as it ends.
    """
    outcomes = run_cells(planned.cells, planned.out, jobs, on_outcome)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    done = [(cell, Result.load(cell, planned.out)) for cell in planned.cells if cell.is_done(planned.out)]
    done.sort(key=lambda pair: planned.collections.index(pair[0].collection))
    # Rows hold differences to the original, so collections whose original failed are left out.
    comparable = {cell.collection for cell, _ in done if cell.name == "original"}
    rows = rows_of([(cell, result) for cell, result in done if cell.collection in comparable], planned.reference)
    comparison = Comparison(rows, lossless(rows), correlations(rows), recommendations(rows), failed)
    if rows:
        write_comparison(comparison, _record(planned), planned.out)
    return comparison


def write_comparison(comparison: Comparison, record: Mapping[str, Any], out: Path) -> None:
    """Write the report, its tables and its plots.

    Args:
        comparison: Rows, and what follows from them.
        record: What is needed to repeat the comparison; its ``reference`` is the method that others are compared with.
        out: An existing folder.
    """
    rows, reference = comparison.rows, record["reference"]
    write_json(rows, out / "report.json")
    write_csv(rows, out / "report.csv")
    report = markdown_report(rows, comparison.lossless, comparison.failed, reference)
    write_text(out / "report.md", report)
    write_object(out / "lossless.json", list(map(asdict, comparison.lossless)))
    proxies = {
        "correlations": list(map(asdict, comparison.correlations)),
        "recommended": list(map(asdict, comparison.recommended)),
    }
    write_object(out / "proxy.json", proxies)
    write_object(out / "run.json", dict(record))
    plot_by_size(rows, out / "report.png", reference)
    plot_by_bytes(rows, out / "by_bytes.png", reference)
    plot_small_multiples(rows, out / "small_multiples.png", reference)
    plot_proxy(rows, comparison.correlations, out / "proxy.png")


def _record(planned: Plan) -> dict[str, Any]:
    """Return the arguments, settings and versions that are needed to repeat the comparison."""
    cells = planned.cells
    return {
        "collections": {cell.collection: {"dims": cell.dims, "fingerprint": cell.fingerprint} for cell in cells},
        "methods": {cell.name: cell.settings for cell in cells},
        "seeds": sorted({cell.seed for cell in cells}),
        "labels": all(cell.labels for cell in cells),
        "reference": planned.reference,
        "missing": [
            f"{cell.collection}, {cell.name}, seed {cell.seed}" for cell in cells if not cell.is_done(planned.out)
        ],
        "versions": versions(),
    }
