"""What held-out queries settle by trial before a fit: whether a teacher helps, the kind of labels, the pull."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from smec_st.classes import are_many, labels_are_classes
from smec_st.config import CLASS_DEFAULTS, PAIR_DEFAULTS, FitConfig
from smec_st.data import Qrels, VectorTable
from smec_st.guard import best_strength, is_sure
from smec_st.labels import Labels
from smec_st.recipe import fit_stages
from smec_st.stages import default_dims

PULLS = (PAIR_DEFAULTS["alignment_weight"], 2.0, CLASS_DEFAULTS["alignment_weight"], 0.0)  # falling
DOUBTFUL = 0.6  # nDCG@10 of full-width search; below, its neighbourhoods may be the wrong ones to keep
MANY = 200  # held-out queries that can tell a small gain from chance
SURE, SURE_OF_FEW = 1.0, 2.0  # standard errors; the usual pull is left by few queries only for a gain of more


def settle(
    table: VectorTable, labels: Labels, recipe: FitConfig, *, work_dir: Path | None = None, progress: bool = False
) -> tuple[FitConfig, str]:
    """The recipe with what held-out queries choose, and a note if that is not the usual.

    The middle one of the sizes is trained alone, as a linear map, in the usual way and in others, and these are
    compared on the held-out queries, each as far from its start as serves it best.

    *Teacher*, unless the recipe names a ``teacher_strength``. The full width may move towards the labels before
    anything is compressed (:func:`~smec_st.teacher.train_teacher`), as far as held-out queries like best. A teacher
    must know better than its pupil: it is taken where the moved full width ranks held-out queries better than what the
    middle size learns without it. Labels too few to hold some out once teach nobody: what they seem to teach is
    chance.

    Two more things are tried, unless the recipe names an ``alignment_weight``:

    *Kind of labels.* Where queries have many relevant documents, labels may say of what kind these are, though no two
    queries have the same ones: then the settings for classes are taken, if they rank better by :data:`SURE` standard
    errors.

    *Pull.* The pull to full-width neighbourhoods stands in for labels that are not there. Where labels are many it
    holds them back; where full-width search ranks the judged documents poorly, its neighbourhoods may rest on
    directions that mean nothing for them. In these cases all of :data:`PULLS` are tried, the last one only if the one
    before it would be taken; the strongest is taken that no weaker one beats by :data:`SURE` standard errors.

    Args:
        table: Corpus and queries.
        labels: What trains and what chooses; of folds, the first. Where they are surely classes nothing is tried.
        recipe: Settings, with ``dims`` or None for the default sizes.
        work_dir: Where the trials' checkpoints go; None to keep none.
        progress: Show progress bars.
    """
    split = labels.one_split()
    if split is None or recipe.order != "grow" or not recipe.guard or labels_are_classes(table, labels.train):
        return recipe, ""
    sizes = recipe.dims or default_dims(table.width)
    middle = (sizes[(len(sizes) - 1) // 2],)

    def tried(settings: FitConfig, name: str) -> np.ndarray:
        (*_, report) = fit_stages(
            table,
            *split,
            dataclasses.replace(settings, dims=middle, narrow_hidden=0.0),
            work_dir=None if work_dir is None else work_dir / name,
            progress=progress,
            title=name.replace("-", " "),
        ).reports
        return max(map(np.array, report.scores.values()), key=np.mean)

    def pulled(weight: float) -> np.ndarray:
        return tried(dataclasses.replace(recipe, alignment_weight=weight), f"pull-{weight:g}")

    usual = None
    if recipe.teacher_strength is None and recipe.may_move:
        if labels.folds:
            recipe = dataclasses.replace(recipe, teacher_strength=0.0)
        else:
            recipe, usual = _take_teacher(table, split, recipe, tried)
    is_open, may_be_classes = _is_open(labels, len(split[1].query_rows)), are_many(split[0])
    if recipe.alignment_weight is not None or not (is_open or may_be_classes):
        return recipe, ""
    found = {PULLS[0]: pulled(PULLS[0]) if usual is None else usual}
    if may_be_classes and _is_better(tried(recipe.for_labels(True), "as-classes"), found[PULLS[0]], SURE):
        return recipe.for_labels(True), "held-out queries chose the settings for classes as labels"
    if not is_open:
        return recipe, ""
    found |= {weight: pulled(weight) for weight in PULLS[1:-1]}
    if _strongest(found) == PULLS[-2]:
        found[PULLS[-1]] = pulled(PULLS[-1])
    chosen = _strongest(found)
    if chosen == PULLS[0]:
        return recipe, ""
    note = f"held-out queries chose a weaker pull to the neighbourhoods of full width: {chosen:g}, not {PULLS[0]:g}"
    return dataclasses.replace(recipe, alignment_weight=chosen), note


def _take_teacher(
    table: VectorTable, split: tuple[Qrels, Qrels], recipe: FitConfig, tried: Callable[[FitConfig, str], np.ndarray]
) -> tuple[FitConfig, np.ndarray | None]:
    """The recipe with the teacher's strength, and what the middle size scored without it, if none is taken."""
    from smec_st.teacher import teacher_scores

    known = teacher_scores(table, *split, recipe.seed)
    strength = best_strength(known, proven=True)
    alone = dataclasses.replace(recipe, teacher_strength=0.0)
    if strength == 0:
        return alone, None
    pupil = tried(alone, "without-teacher")
    if known[strength].mean() > pupil.mean():
        return dataclasses.replace(recipe, teacher_strength=strength), None
    return alone, pupil


def _strongest(found: dict[float, np.ndarray]) -> float:
    """The strongest pull that no weaker one surely beats; the usual one is left by few queries for more only.

    Args:
        found: Scores of the held-out queries by weight, falling, ``(q,)`` each.
    """

    def is_beaten(weight: float) -> bool:
        needed = SURE_OF_FEW if weight == PULLS[0] and len(found[weight]) < MANY else SURE
        return any(_is_better(found[weaker], found[weight], needed) for weaker in found if weaker < weight)

    return next(weight for weight in found if not is_beaten(weight))  # the weakest is not


def _is_better(scores: np.ndarray, others: np.ndarray, errors: float) -> bool:
    """Of the held-out queries, ``(q,)`` each; not where both keep the start: no reason to change anything."""
    gain = scores - others
    return bool(gain.any()) and is_sure(gain, errors)


def _is_open(labels: Labels, held_out: int) -> bool:
    """Whether another pull than the usual one may do better, and the held-out queries could tell."""
    return labels.quality is not None and (labels.quality < DOUBTFUL or held_out >= MANY)
