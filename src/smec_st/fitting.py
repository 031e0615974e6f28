"""From a collection to the maps of a compressor, and from its maps to more of them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.classes import complete_classes, labels_are_classes
from smec_st.config import METHODS, FitConfig
from smec_st.data import DataError, Qrels, VectorTable
from smec_st.guard import Choice, better_without_labels, choose_by_folds
from smec_st.labels import Labels, LabelsWarning, share_labels
from smec_st.maps import FoldedMap
from smec_st.recipe import Fitted, fit_stages, fit_untrained
from smec_st.stages import Stage, StageReport, check_dims, default_dims, plan_stages
from smec_st.trials import settle

UNTRAINED = ("truncate", "pca")
Maps = Sequence[tuple[FoldedMap, tuple[int, ...]]]


@dataclass(frozen=True)
class Made:
    """What a fit makes.

    Attributes:
        maps: Folded maps and the sizes that each serves.
        info: Method, settings, data and stages, for :attr:`Compressor.info`.
        labels: Which judgements trained and which chose.
        asking: Query rows that may be read without judgements; None for all.
    """

    maps: Maps
    info: dict[str, Any]
    labels: Labels
    asking: np.ndarray | None


def settings_of(method: str) -> dict[str, Any]:
    """Settings of a named method that differ from the defaults.

    Raises:
        DataError: If there is no such method.
    """
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}; known are {', '.join(METHODS)}.")
    return METHODS[method]


def make_recipe(settings: Mapping[str, Any], width: int) -> FitConfig:
    """The settings, with sizes that fit the width: the default ones where none are named.

    Raises:
        DataError: If a name, a value or a size is wrong.
    """
    dims = settings.get("dims")
    try:
        dims = check_dims(default_dims(width) if dims is None else dims, width)
        return FitConfig.from_dict({**settings, "dims": dims})
    except ValueError as error:
        raise DataError(str(error)) from error


def fit_maps(
    method: str,
    table: VectorTable,
    train: Qrels | None,
    dev: Qrels | None,
    recipe: FitConfig,
    *,
    unlabelled_queries: np.ndarray | None = None,
    work_dir: Path | None = None,
    progress: bool = False,
) -> Made:
    """Share the judgements out, then train or compute the maps.

    Args:
        method: A name in :data:`~smec_st.config.METHODS`.
        table: Corpus and queries.
        train: Training judgements; None to train without labels.
        dev: Judgements of held-out queries; None to hold some out.
        recipe: Settings, with ``dims``.
        unlabelled_queries: See :meth:`smec_st.Compressor.fit`.
        work_dir: Likewise.
        progress: Likewise.
    """
    labels, asking = Labels(train, dev), unlabelled_queries
    if method not in UNTRAINED:
        labels = _share(table, train, dev, recipe)
        asking = train.query_rows if train is not None and asking is None and recipe.guard else asking
        usual = recipe
        recipe, note = settle(table, labels, usual, work_dir=work_dir, progress=progress)
        labels = dataclasses.replace(labels, note=note or labels.note)
    without = 0
    if method in UNTRAINED:
        fitted = fit_untrained(method, table, recipe.dims or default_dims(table.width))
    else:
        others = _queries_beside(labels, table, asking)
        if len(others) and recipe.order == "grow" and recipe.hidden_dim is None:
            fitted, without = _fit_few(table, labels, recipe, usual, others, work_dir, progress)
        else:
            options = {"unlabelled_queries": asking, "work_dir": work_dir, "progress": progress}
            fitted = _fit_guarded(table, labels, recipe, **options)
    info = {
        "method": method,
        "settings": recipe.for_labels(labels_are_classes(table, labels.train)).to_dict(),
        "data": _data_of(table, labels, without, fitted.teacher_strength),
        "stages": [report.to_dict() for report in fitted.reports],
    }
    return Made(fitted.maps, info, labels, asking)


def _data_of(table: VectorTable, labels: Labels, without: int, teacher_strength: float) -> dict[str, Any]:
    """What a fit was made of; ``without`` is the size up to which it did better without labels."""
    notes = [labels.note] if labels.note else []
    if without:
        notes.append(f"up to {without} dims trained without labels: that ranks the held-out queries better")
    return {
        "documents": table.corpus_size,
        "training_queries": 0 if labels.train is None else len(labels.train.query_rows),
        "held_out_queries": sum(len(part.query_rows) for part in (labels.held_out, *labels.folds) if part),
        **({"folds": len(labels.folds)} if labels.folds else {}),
        **({"teacher_strength": teacher_strength} if teacher_strength else {}),
        **({"note": "; ".join(notes)} if notes else {}),
    }


def _share(table: VectorTable, train: Qrels | None, dev: Qrels | None, recipe: FitConfig) -> Labels:
    if train is None or not recipe.guard:
        return Labels(train, dev)
    labels = share_labels(table, train, dev, recipe.held_out_share, recipe.seed, recipe.folds)
    if labels.note:
        warnings.warn(labels.note, LabelsWarning, stacklevel=4)
    if labels.train is None:
        return labels
    whole = complete_classes(table, labels.train)
    if whole is labels.train:
        return labels
    named = len(labels.train.pairs) / len(whole.pairs)
    note = f"judgements name {named:.0%} of the classes they are about; training counts the rest as relevant, too"
    return dataclasses.replace(labels, train=whole, note=note)


def _without_labels(recipe: FitConfig) -> FitConfig:
    """The same where nothing but the pull trains: labels may have chosen to do without it."""
    return dataclasses.replace(recipe, alignment_weight=recipe.alignment_weight or None)


def _queries_beside(labels: Labels, table: VectorTable, asking: np.ndarray | None) -> np.ndarray:
    """Queries that may be read beside few judged ones, where they are as many at least; else none."""
    if not labels.folds or labels.train is None:
        return np.zeros(0, dtype=np.int64)
    judged = labels.train.query_rows
    others = np.setdiff1d(np.arange(table.query_size) if asking is None else asking, judged)
    return others if len(others) >= len(judged) else others[:0]


def _fit_guarded(table: VectorTable, labels: Labels, recipe: FitConfig, **options: Any) -> Fitted:
    """Train; with folds, with all labels as far as those chose together."""
    choices = _cross_validate(table, labels, recipe, **options) if labels.folds else None
    return fit_stages(table, labels.train, labels.held_out, recipe, choices=choices, **options)


def _cross_validate(
    table: VectorTable, labels: Labels, recipe: FitConfig, work_dir: Path | None = None, **options: Any
) -> dict[int, Choice]:
    """How far each size should go, by fits without one of the folds each."""
    assert labels.train is not None
    fits = []
    for number, held in enumerate(labels.folds):
        rest = labels.train.of_queries(np.setdiff1d(labels.train.query_rows, held.query_rows))
        folder = None if work_dir is None else work_dir / f"fold-{number}"
        title = f"fold {number + 1}/{len(labels.folds)}"
        fits.append(fit_stages(table, rest, held, recipe, work_dir=folder, title=title, **options).reports)
    return choose_by_folds(fits, [held.query_rows for held in labels.folds])


def _fit_few(
    table: VectorTable,
    labels: Labels,
    recipe: FitConfig,
    usual: FitConfig,
    others: np.ndarray,
    work_dir: Path | None,
    progress: bool,
) -> tuple[Fitted, int]:
    """Train with few labels, and without them as long as that ranks their queries better.

    Narrow columns need many queries to learn from, and few labels name few. So sizes from the smallest up to the first
    that labels serve better are trained without, on ``others`` and with the settings ``usual``, which no trial by
    labels has changed; the rest grow from there with labels. Judged queries have no part in training without labels,
    or they could not judge it.

    Returns:
        The fit, and the size up to which it is without labels.
    """
    assert labels.train is not None
    choices = _cross_validate(table, labels, recipe, work_dir, progress=progress)
    judged = Qrels.joined(labels.folds)  # as they were, where classes have been completed
    free = fit_stages(
        table, None, judged, _without_labels(usual), unlabelled_queries=others, progress=progress,
        title="without labels",
        work_dir=None if work_dir is None else work_dir / "without-labels",
    )  # fmt: skip
    have = better_without_labels(free.reports, choices)
    (narrow, sizes), *_ = free.maps
    if have == sizes[0]:
        return free, have
    grown: dict[str, Any] = {}
    if have:
        above = [size for size in sizes if size > have]
        plan = plan_stages(table.width, above, "grow", recipe.selection_ratio, have=have)
        grown = {"base": narrow.first(have), "stages": plan}
    fitted = fit_stages(
        table, labels.train, None, recipe, choices=choices, work_dir=work_dir, progress=progress, **grown
    )
    reports = [report for report in free.reports if report.dim <= have]
    return Fitted(((fitted.maps[0][0], sizes),), (*reports, *fitted.reports), fitted.teacher_strength), have


def extend_maps(
    maps: Maps,
    table: VectorTable,
    train: Qrels | None,
    dev: Qrels | None,
    config: FitConfig,
    progress: bool = False,
) -> tuple[Maps, list[dict[str, Any]]]:
    """Maps with the further sizes ``config.dims``; those that were there stay as they are.

    Returns:
        All maps, and reports of the new stages.

    Raises:
        DataError: If a size exists already.
    """
    new = config.dims or ()
    kept, reports = list(maps), list[StageReport]()
    have = sorted(dim for _, sizes in maps for dim in sizes)
    if set(new) & set(have):
        raise DataError(f"size {max(set(new) & set(have))} exists already.")
    widest = have[-1]
    above = [dim for dim in new if dim > widest]
    labels = _share(table, train, dev, config)
    if labels.train is None:
        config = _without_labels(config)
    if above:
        home = next(i for i, (_, sizes) in enumerate(kept) if widest in sizes)
        plan = plan_stages(table.width, above, "grow", config.selection_ratio, have=widest)
        base = kept[home][0].first(widest)
        fitted = _fit_guarded(table, labels, config, base=base, stages=plan, progress=progress)
        kept[home] = (fitted.maps[0][0], (*above, *kept[home][1]))
        reports += fitted.reports
        have += above
    for dim in (dim for dim in new if dim not in above):
        parent = min(size for size in have if size > dim)
        source = next(folded.first(parent) for folded, sizes in kept if parent in sizes)
        stage = Stage(index=0, order="shrink", phase="joint", in_dim=parent, out_dim=dim, candidates=parent)
        shrink = dataclasses.replace(config, order="shrink")
        fitted = _fit_guarded(table, labels, shrink, base=source, stages=(stage,), progress=progress)
        kept.append((fitted.maps[-1][0], (dim,)))
        reports += fitted.reports
        have.append(dim)
    return kept, [report.to_dict() for report in reports]
