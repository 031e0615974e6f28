"""Run the cells that are not there yet, several at a time."""

from __future__ import annotations

import functools
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError

from smec_st.baselines import TrainingData
from smec_st.compare.cells import Cell, Result, SizeScores, Source, fingerprint
from smec_st.compare.scoring import Yardstick, test_split
from smec_st.config import HELD_OUT
from smec_st.data import Collection, DataError, VectorTable
from smec_st.data.errors import one_line
from smec_st.matmul import fast_matmul


class Outcome(NamedTuple):
    """How a cell went.

    Attributes:
        cell: The cell.
        seconds: Time it took.
        error: Why it failed, in one line; None when it is done.
    """

    cell: Cell
    seconds: float
    error: str | None

    def __str__(self) -> str:
        """For a line of progress."""
        cell, end = self.cell, f"{self.seconds:.1f} s" if self.error is None else f"failed, {self.error}"
        return f"{cell.collection}, {cell.name}, seed {cell.seed}: {end}"


def run_cells(
    cells: Sequence[Cell], out: Path, jobs: int = 1, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """Run the cells whose files are missing; a kill at any moment loses only the cells that are running.

    Args:
        cells: In the order to start them.
        out: Folder that keeps ``cells/``.
        jobs: Processes; each gets its share of the cores.
        on_outcome: Called with each cell as it ends.

    Returns:
        Outcomes of the cells that were run. One that raises an exception is among them; the others go on.

    Raises:
        ChildProcessError: If a process was killed, for instance for want of memory.
    """
    missing = [cell for cell in cells if not cell.is_done(out)]
    if not missing:
        return []
    jobs = min(jobs, len(missing))
    outcomes = []
    one_share = joblib.parallel_config("loky", inner_max_num_threads=max(1, joblib.cpu_count() // jobs))
    with one_share, warnings.catch_warnings():
        # loky replaces a worker that has grown; nothing is lost
        warnings.filterwarnings("ignore", message="A worker stopped")
        work = joblib.Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs, return_as="generator_unordered")
        try:
            for outcome in work(joblib.delayed(run_cell)(cell, out) for cell in missing):
                outcomes.append(outcome)
                if on_outcome is not None:
                    on_outcome(outcome)
        except TerminatedWorkerError as error:
            raise ChildProcessError(
                "a process was killed, perhaps for want of memory; use fewer jobs. The same command goes on."
            ) from error
    return outcomes


def run_cell(cell: Cell, out: Path) -> Outcome:
    """Fit, score and keep one cell; of one that fails, where it failed."""
    began = time.perf_counter()
    trace = cell.path(out).with_suffix(".error.txt")
    try:
        measure(cell).save(cell, out)
    except Exception as error:  # a method may fail in any way; the others go on
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome(cell, time.perf_counter() - began, f"{type(error).__name__}: {one_line(error)}")
    trace.unlink(missing_ok=True)
    return Outcome(cell, time.perf_counter() - began, None)


@fast_matmul()
def measure(cell: Cell) -> Result:
    """Fit a cell's method once and score all its sizes."""
    collection, table, yardstick = _prepared(cell.source, cell.fingerprint)
    data = training_data(collection, table, cell.labels, cell.seed)
    began = time.perf_counter()
    encoder = cell.method.fit(data, cell.dims, cell.seed)
    fitted = time.perf_counter()
    sizes = tuple(SizeScores(size, *yardstick.measure(encoder, size)) for size in encoder.sizes)
    return Result(
        sizes=sizes,
        fit_seconds=fitted - began,
        score_seconds=time.perf_counter() - fitted,
        learned_from_labels=cell.labels and cell.method.uses_labels,
        split=test_split(collection),
    )


@functools.cache
def _prepared(source: Source, mark: str) -> tuple[Collection, VectorTable, Yardstick]:
    """Each process reads a collection once; ``mark`` is its fingerprint."""
    collection = source.load()
    if fingerprint(collection) != mark:
        raise DataError(f"{collection.name} has changed since the comparison began; start it again.")
    table = VectorTable(collection.corpus, collection.queries, collection.own_document)
    return collection, table, Yardstick.of(collection)


def training_data(collection: Collection, table: VectorTable, labels: bool, seed: int) -> TrainingData:
    """What every method may see: nothing of the split it is scored on.

    Held-out judgements are the dev split, or else a share of the training queries.
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
