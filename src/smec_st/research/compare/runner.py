"""Run the missing cells of a comparison, several at a time."""

from __future__ import annotations

import functools
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smec_st.data import Collection, DataError, VectorTable
from smec_st.fitting.config import HELD_OUT
from smec_st.research.baselines import TrainingData
from smec_st.research.compare.cells import Cell, Result, SizeScores, Source, fingerprint
from smec_st.research.compare.scoring import Yardstick, test_split
from smec_st.system.errors import one_line
from smec_st.system.matmul import fast_matmul
from smec_st.system.optional import load_optional


class Outcome(NamedTuple):
    """The outcome of running a cell.

    Attributes:
        cell: The cell.
        seconds: Time it took.
        error: Why it failed, in one line; None when it succeeded.
    """

    cell: Cell
    seconds: float
    error: str | None

    def __str__(self) -> str:
        """Describe the outcome in one line, for progress."""
        cell, end = self.cell, f"{self.seconds:.1f} s" if self.error is None else f"failed, {self.error}"
        return f"{cell.collection}, {cell.name}, seed {cell.seed}: {end}"


def run_cells(
    cells: Sequence[Cell], out: Path, jobs: int = 1, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Run the cells whose files are missing. A crash loses only the cells that are running at that moment.

    Args:
        cells: Cells in the order in which to start them.
        out: Folder that holds ``cells/``.
        jobs: Number of processes; each gets an equal share of the cores.
        on_outcome: Called with the outcome of each cell as soon as it ends.

    Returns:
        Outcomes of the cells that were run, including those that raised an exception, which does not stop the others.

    Raises:
        ChildProcessError: If a process was killed, for instance because memory ran out.
    """
    missing = [cell for cell in cells if not cell.is_done(out)]
    if not missing:
        return []
    jobs = min(jobs, len(missing))
    outcomes = []
    joblib = load_optional("joblib", "a comparison")
    executor = load_optional("joblib.externals.loky.process_executor", "a comparison")
    cores_per_job = max(1, joblib.cpu_count() // jobs)
    with joblib.parallel_config("loky", inner_max_num_threads=cores_per_job), warnings.catch_warnings():
        # joblib warns when it replaces a worker whose memory has grown; no work is lost
        warnings.filterwarnings("ignore", message="A worker stopped")
        work = joblib.Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs, return_as="generator_unordered")
        try:
            for outcome in work(joblib.delayed(run_cell)(cell, out) for cell in missing):
                outcomes.append(outcome)
                if on_outcome is not None:
                    on_outcome(outcome)
        except executor.TerminatedWorkerError as error:
            raise ChildProcessError(
                "a process was killed, perhaps because memory ran out; use fewer jobs. The same command continues the "
                "comparison."
            ) from error
    return outcomes


def run_cell(cell: Cell, out: Path) -> Outcome:
    """Fit, score and save one cell. If it fails, save the traceback next to where its result would be."""
    started = time.perf_counter()
    trace = cell.path(out).with_suffix(".error.txt")
    try:
        measure(cell).save(cell, out)
    except Exception as error:  # one method's failure must not stop the others
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(cell, time.perf_counter() - started, f"{type(error).__name__}: {one_line(error)}")
    trace.unlink(missing_ok=True)
    return Outcome(cell, time.perf_counter() - started, None)


@fast_matmul()
def measure(cell: Cell) -> Result:
    """Fit the method of a cell once, and score it at all its sizes."""
    collection, table, yardstick = _prepare(cell.source, cell.fingerprint)
    data = training_data(collection, table, cell.labels, cell.seed)
    started = time.perf_counter()
    encoder = cell.method.fit(data, cell.dims, cell.seed)
    fitted = time.perf_counter()
    sizes = tuple(SizeScores(size, *yardstick.measure(encoder, size)) for size in encoder.sizes)
    return Result(
        sizes=sizes,
        fit_seconds=fitted - started,
        score_seconds=time.perf_counter() - fitted,
        learned_from_labels=cell.labels and cell.method.uses_labels,
        split=test_split(collection),
    )


@functools.cache
def _prepare(source: Source, expected: str) -> tuple[Collection, VectorTable, Yardstick]:
    """Load a collection, once per process, and check that it still has the ``expected`` fingerprint."""
    collection = source.load()
    if fingerprint(collection) != expected:
        raise DataError(f"{collection.name} has changed since the comparison began; start it again.")
    table = VectorTable(collection.corpus, collection.queries, collection.own_document)
    return collection, table, Yardstick.of(collection)


def training_data(collection: Collection, table: VectorTable, labels: bool, seed: int) -> TrainingData:
    """Collect the data that methods may use, which excludes the split they are scored on.

    The validation judgements are the dev split, or a share of the training queries if there is no dev split.
    """
    scored = collection.judged(test_split(collection))
    train = collection.judged("train") if labels or "train" in collection.qrels else None
    unlabelled = np.arange(len(collection.queries)) if train is None else train.query_rows
    queries = np.setdiff1d(unlabelled, scored.query_rows)
    if train is None or not labels:
        return TrainingData(table, None, None, queries)
    if "dev" in collection.qrels and test_split(collection) != "dev":
        return TrainingData(table, train, collection.qrels["dev"], queries)
    return TrainingData(table, *train.hold_out(HELD_OUT, seed), queries, judged=train)
