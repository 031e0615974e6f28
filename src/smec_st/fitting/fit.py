"""Fit the maps of a compressor to a collection: candidates are tried on held-out queries, and one is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data import DataError, Qrels, Table, VectorTable
from smec_st.data.vectors import hash_rows
from smec_st.evaluation.choice import Decision, first_unbeaten, still_in_question
from smec_st.fitting.config import (
    ENOUGH_QUERIES,
    FEWEST_QUERIES,
    FOLDS,
    JUDGED_DOCUMENTS,
    LEFT_OUT,
    MOST_QUERIES,
    WIDEST,
    FitConfig,
)
from smec_st.fitting.recipe import Fitted, Maps, fit_stages, fit_untrained
from smec_st.stages import Stage, StageReport, check_dims, default_dims, plan_stages
from smec_st.system.files import read_json, write_text

UNTRAINED = ("truncate", "pca")
INPUT = "input.json"  # in the folder of a run: the hash of all that it depends on
DECISION = "decision.json"  # in the folder of a run, once it is made
SAFEST = "neighbourhoods"  # the fit without labels


class LabelsWarning(UserWarning):
    """Warns that judgements were given and nothing is trained on them."""


@dataclass(frozen=True)
class FitResult:
    """The outcome of a fit.

    Attributes:
        maps: Folded maps and the sizes that each serves.
        info: Method, settings, data, decisions and stages, for :attr:`Compressor.info`.
        trains_on_labels: Whether the maps were trained on judgements.
    """

    maps: Maps
    info: dict[str, Any]
    trains_on_labels: bool = False


def resolve_config(settings: Mapping[str, Any], width: int) -> FitConfig:
    """Check settings and fill in the sizes; by default the width and its halvings.

    Raises:
        DataError: If a name, a value or a size is wrong.
    """
    dims = settings.get("dims")
    try:
        dims = check_dims(default_dims(width) if dims is None else dims, width)
        return FitConfig.from_dict({**settings, "dims": dims})
    except ValueError as error:
        raise DataError(str(error)) from error


def claim_work_dir(
    work: Path,
    table: VectorTable,
    judged: Sequence[Qrels | None],
    unlabelled: np.ndarray | None,
    settings: Mapping[str, Any],
) -> None:
    """Write down what a run depends on, and refuse to continue that of another input.

    Raises:
        DataError: If the folder holds an unfinished run of other vectors, judgements or settings.
    """
    digest = hashlib.sha256(json.dumps([unlabelled is None, dict(settings)], sort_keys=True, default=str).encode())
    arrays = [
        array for qrels in judged if qrels is not None for array in (qrels.queries, qrels.documents, qrels.grades)
    ]
    for array in (*table.parts, table.own_rows, *arrays, *([] if unlabelled is None else [unlabelled])):
        hash_rows(digest, array)
    record, key = work / INPUT, digest.hexdigest()[:16]
    has_run = (work / DECISION).exists() or any(work.glob("stage-*"))
    if has_run and read_json(record).get("input") != key:
        raise DataError(f"{work} holds an unfinished run of another input; choose another work_dir or remove it.")
    work.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps({"input": key}) + "\n")


def fit_maps(
    method: str,
    table: Table,
    train: Qrels | None,
    dev: Qrels | None,
    config: FitConfig,
    *,
    unlabelled_queries: np.ndarray | None = None,
    work_dir: Path | None = None,
    progress: bool = False,
) -> FitResult:
    """Choose a candidate on held-out queries and train it on all training queries.

    Args:
        method: A name in :data:`~smec_st.fitting.config.METHODS`.
        table: Corpus and queries.
        train: Training judgements; None to train without labels.
        dev: Judgements that only choose; None to cross-validate over the training queries.
        config: Settings, with ``dims``.
        unlabelled_queries: See :meth:`smec_st.Compressor.fit`.
        work_dir: See :meth:`smec_st.Compressor.fit`.
        progress: Show a progress bar.
    """
    dims = check_dims(config.dims or default_dims(table.width), table.width)
    if method in UNTRAINED:
        return FitResult(fit_untrained(method, table, dims).maps, _info_of(method, config, table, None, [], ()))
    if table.corpus_size < 2:
        raise DataError("a map is learned from two documents or more; there is one.")
    turned, turn = _leading_axes(table, dims[0])
    run = _Run(turned, config, unlabelled_queries, work_dir, progress)
    decisions: list[Decision] = []
    if train is not None and len(config.candidates) > 1:
        with _short_collections():
            decisions.append(run.choose(train, dev))
        if not run.trains_on_labels(decisions[-1].chosen):
            warnings.warn(f"nothing is trained on the judgements. {decisions[-1]}", LabelsWarning, stacklevel=3)
    chosen = decisions[-1].chosen if decisions else config.candidates[-1] if train is not None else SAFEST
    fitted = run.fit(chosen, train)
    maps = fitted.maps if turn is None else tuple((folded.after(turn), sizes) for folded, sizes in fitted.maps)
    used = config.as_candidate(chosen)
    learned = train is not None and run.trains_on_labels(chosen)
    return FitResult(maps, _info_of(method, used, table, train, decisions, fitted.reports), learned)


def _info_of(
    method: str,
    config: FitConfig,
    table: Table,
    train: Qrels | None,
    decisions: Sequence[Decision],
    reports: Sequence[StageReport],
) -> dict[str, Any]:
    return {
        "method": method,
        "settings": config.to_dict(),
        "data": {
            "documents": table.corpus_size,
            "training_queries": 0 if train is None else len(train.query_rows),
        },
        "decisions": [decision.to_dict() for decision in decisions],
        "stages": [report.to_dict() for report in reports],
    }


@dataclass(frozen=True)
class _Run:
    """Fits of one collection with one set of settings."""

    table: Table
    config: FitConfig
    unlabelled_queries: np.ndarray | None
    work_dir: Path | None
    progress: bool

    @staticmethod
    def trains_on_labels(candidate: str) -> bool:
        """Return whether a candidate learns anything from judgements."""
        return candidate not in ("start", "neighbourhoods")

    def fit(self, candidate: str, train: Qrels | None) -> Fitted:
        """Train a candidate."""
        config = self.config.as_candidate(candidate)
        if train is not None and config.rank_weight > 0:
            config = config.for_queries(len(train.query_rows))
        return fit_stages(
            self.table,
            None if candidate == SAFEST else train,
            config,
            unlabelled_queries=self._unlabelled(train),
            work_dir=self.work_dir,
            progress=self.progress,
            title=candidate,
        )

    def choose(self, train: Qrels, dev: Qrels | None) -> Decision:
        """Choose the candidate to train, by the mean nDCG@10 over all sizes on queries that it was not trained on.

        A run that is continued reads its earlier decision.
        """
        made = None if self.work_dir is None else self.work_dir / DECISION
        if made is not None and made.is_file():
            return Decision(**read_json(made))
        decision = self._decide(train, dev)
        if made is not None:
            made.parent.mkdir(parents=True, exist_ok=True)
            write_text(made, json.dumps(decision.to_dict()))
        return decision

    def _decide(self, train: Qrels, dev: Qrels | None) -> Decision:
        what = "what to train"
        if len(train.query_rows) + (0 if dev is None else len(dev.query_rows)) < FEWEST_QUERIES:
            return Decision(what, self.config.candidates[0], self.config.candidates[0])
        scores = {name: np.zeros(0) for name in self.config.candidates}
        for fold, (rest, held) in enumerate(_folds(self.table, train, dev, self.config.seed)):
            found = self._try(list(scores), rest, held, f"fold {fold + 1}")
            scores = {name: np.concatenate([before, found[name]]) for name, before in scores.items()}
            scores = {name: scores[name] for name in still_in_question(scores)}
        return first_unbeaten(scores, what)

    def _try(self, names: list[str], train: Qrels, held: Qrels, fold: str) -> dict[str, np.ndarray]:
        """Train candidates briefly, and return the mean score over all sizes of each held-out query, ``(q,)``.

        Held-out queries are not even read without their judgements. Candidates that adapt share the adapt stage.
        """
        from smec_st.evaluation.evaluator import HeldOutEvaluator

        unlabelled = np.setdiff1d(self._unlabelled(train), held.query_rows)
        tables = {False: self.table}
        judges: dict[bool, HeldOutEvaluator] = {}
        scores = {}
        for name in names:
            config = self.config.as_candidate(name, trial=True)
            adapts = config.adapts
            if adapts and adapts not in tables:
                tables[adapts] = self._adapted(train, config, f"adapt, {fold}")
            if adapts not in judges:
                judges[adapts] = HeldOutEvaluator(tables[adapts], held, max_corpus=JUDGED_DOCUMENTS)
            maps = fit_stages(
                tables[adapts],
                None if config.rank_weight == 0 else train,
                dataclasses.replace(config, adapt_steps=0),
                unlabelled_queries=unlabelled,
                progress=self.progress,
                title=f"{name}, {fold}",
            ).maps
            scores[name] = np.hstack([judges[adapts].scores(*each) for each in maps]).mean(axis=1)
        return scores

    def _adapted(self, train: Qrels, config: FitConfig, title: str) -> Table:
        """Train an adapt stage, and return the table with its vectors moved."""
        import torch

        width = self.table.width
        stage = Stage(index=0, order="grow", phase="adapt", in_dim=width, out_dim=width)
        adapt = fit_stages(self.table, train, config, stages=(stage,), progress=self.progress, title=title)
        ((folded, _),) = adapt.maps
        return self.table.moved(torch.from_numpy(folded.layers[0].weight))

    def _unlabelled(self, train: Qrels | None) -> np.ndarray:
        """Return the query rows that are read without their judgements."""
        if self.unlabelled_queries is not None:
            return self.unlabelled_queries
        return np.arange(self.table.query_size) if train is None else train.query_rows


def _folds(table: Table, train: Qrels, dev: Qrels | None, seed: int) -> Iterator[tuple[Qrels, Qrels]]:
    """Yield judgements to train on and to score, fold by fold, until enough queries have been held out.

    A dev split, which is never trained on, comes first. Of the others every second one shares no relevant document
    with what is trained on. A held-out query that is a document itself is out of training altogether: as a labelled
    document it would give the answer away.
    """
    parts = [dev] if dev is not None else []
    some = _some_queries(train, seed)
    if len(some.query_rows) >= FEWEST_QUERIES:
        folds = some.folds(FOLDS, seed)
        parts += [*folds[:: FOLDS // 2], *folds[1 :: FOLDS // 2]]  # unseen documents, any, unseen, any
    asked = 0
    for held in parts:
        if asked >= ENOUGH_QUERIES:
            return
        held = _some_queries(held, seed)
        asked += len(held.query_rows)
        rest = train.of_queries(np.setdiff1d(train.query_rows, held.query_rows))
        keep = ~np.isin(rest.documents, table.own_documents(held.query_rows))
        yield Qrels(rest.queries[keep], rest.documents[keep], rest.grades[keep]), held


def _some_queries(qrels: Qrels, seed: int) -> Qrels:
    """Keep at most :data:`MOST_QUERIES` queries; those that share a relevant document stay together."""
    count = len(qrels.query_rows)
    return qrels if count <= MOST_QUERIES else qrels.split(MOST_QUERIES / count, seed)[1]


def _leading_axes(table: Table, most: int) -> tuple[Table, np.ndarray | None]:
    """Turn wide vectors to their leading axes, and return the turn ``(k, D)`` as well; None for narrow vectors.

    All but :data:`LEFT_OUT` of the energy is kept, in at most :data:`WIDEST` numbers, and never less than the largest
    size asked for.
    """
    from smec_st.functional import subspace_iteration
    from smec_st.training.moments import corpus_moments

    if table.width <= WIDEST:
        return table, None

    moment = corpus_moments(table)[1].float()
    axes = subspace_iteration(moment, max(WIDEST, most))
    energy = ((axes @ moment) * axes).sum(dim=1).clamp_min(0).cumsum(0) / moment.trace()
    keep = int((energy < 1 - LEFT_OUT).sum()) + 1
    keep = max(min(keep, WIDEST), most)
    turn = axes[:keep]
    return table.moved(turn), turn.numpy()


@contextlib.contextmanager
def _short_collections() -> Iterator[None]:
    """Exclude existing objects from garbage collection: each trial collects several times, half a second each."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def extend_maps(
    maps: Maps,
    table: Table,
    train: Qrels | None,
    config: FitConfig,
    progress: bool = False,
) -> tuple[Maps, list[dict[str, Any]]]:
    """Add the sizes ``config.dims`` to maps; existing ones stay as they are.

    Returns:
        All maps, and reports of the new stages.

    Raises:
        DataError: If a size exists already.
    """
    if config.steps == 0:  # the first fit chose `start`; new sizes learn from neighbourhoods alone
        config = dataclasses.replace(config, steps=FitConfig.steps, rank_weight=0.0)
    new = config.dims or ()
    kept, reports = list(maps), list[StageReport]()
    have = sorted(dim for _, sizes in maps for dim in sizes)
    if set(new) & set(have):
        raise DataError(f"size {max(set(new) & set(have))} exists already.")
    widest = have[-1]
    above = [dim for dim in new if dim > widest]
    options: dict[str, Any] = {"progress": progress, "unlabelled_queries": None if train is None else train.query_rows}
    if above:
        home = next(i for i, (_, sizes) in enumerate(kept) if widest in sizes)
        plan = plan_stages(table.width, above, "grow", selection_ratio=config.selection_ratio, have=widest)
        base = kept[home][0].first(widest)
        fitted = fit_stages(table, train, config, base=base, stages=plan, **options)
        kept[home] = (fitted.maps[0][0], (*above, *kept[home][1]))
        reports += fitted.reports
        have += above
    for dim in (dim for dim in new if dim not in above):
        parent = min(size for size in have if size > dim)
        source = next(folded.first(parent) for folded, sizes in kept if parent in sizes)
        stage = Stage(index=0, order="shrink", phase="joint", in_dim=parent, out_dim=dim, candidates=parent)
        shrink = dataclasses.replace(config, order="shrink")
        fitted = fit_stages(table, train, shrink, base=source, stages=(stage,), **options)
        kept.append((fitted.maps[-1][0], (dim,)))
        reports += fitted.reports
        have.append(dim)
    return kept, [report.to_dict() for report in reports]
