"""What held-out queries settle by trial before a fit: the kind of labels, the pull, whether a teacher helps."""

from __future__ import annotations

import dataclasses
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

    Unless the recipe names an ``alignment_weight``:

    *Kind of labels.* Where queries have many relevant documents, labels may say of what kind these are, though no two
    queries have the same ones: then the settings for classes are taken, if they rank better by :data:`SURE` standard
    errors.

    *Pull.* The pull to full-width neighbourhoods stands in for labels that are not there. Where labels are many it
    holds them back; where full-width search ranks the judged documents poorly, its neighbourhoods may rest on
    directions that mean nothing for them. In these cases all of :data:`PULLS` are tried, the last one only if the one
    before it would be taken; the strongest is taken that no weaker one beats by :data:`SURE` standard errors.

    *Teacher*, unless the recipe names a ``teacher_strength``. The full width may move towards the labels before
    anything is compressed (:func:`~smec_st.teacher.train_teacher`), as far as held-out queries like best. A teacher
    must know better than its pupil: it is taken where the moved full width ranks held-out queries better than what the
    middle size learns without it, in the way just chosen; the other two are then tried anew. Labels too few to hold
    some out once teach nobody: what they seem to teach is chance.

    Args:
        table: Corpus and queries.
        labels: What trains and what chooses; of folds, the first. Where they are surely classes nothing is tried.
        recipe: Settings, with ``dims`` or None for the default sizes.
        work_dir: Where the trials' checkpoints go; None to keep none.
        progress: Show progress bars.
    """
    from smec_st.teacher import teacher_scores

    split = labels.one_split()
    if split is None or recipe.order != "grow" or not recipe.guard or labels_are_classes(table, labels.train):
        return recipe, ""
    trials = _Trials(table, *split, labels.quality, work_dir, progress)
    if recipe.teacher_strength is not None or not recipe.may_move:
        return trials.choose(recipe)[:2]
    pupil, note, scores = trials.choose(dataclasses.replace(recipe, teacher_strength=0.0))
    if labels.folds:
        return pupil, note
    known = teacher_scores(table, *split, recipe.seed)
    strength = best_strength(known, proven=True)
    if strength == 0:
        return pupil, note
    alone = trials.run(pupil, "without-teacher") if scores is None else scores
    if known[strength].mean() <= alone.mean():
        return pupil, note
    return trials.choose(dataclasses.replace(recipe, teacher_strength=strength))[:2]


@dataclasses.dataclass(frozen=True)
class _Trials:
    """The middle size of a fit, trained alone on ``train`` in one way or another and scored on ``held_out``."""

    table: VectorTable
    train: Qrels
    held_out: Qrels
    quality: float | None
    work_dir: Path | None
    progress: bool

    def run(self, recipe: FitConfig, name: str) -> np.ndarray:
        """Scores of the held-out queries, ``(q,)``, as far from the start as serves them best."""
        sizes = recipe.dims or default_dims(self.table.width)
        middle = (sizes[(len(sizes) - 1) // 2],)
        name = f"taught-{name}" if recipe.teacher_strength else name
        (*_, report) = fit_stages(
            self.table,
            self.train,
            self.held_out,
            dataclasses.replace(recipe, dims=middle, narrow_hidden=0.0),
            work_dir=None if self.work_dir is None else self.work_dir / name,
            progress=self.progress,
            title=name.replace("-", " "),
        ).reports
        return max(map(np.array, report.scores.values()), key=np.mean)

    def choose(self, recipe: FitConfig) -> tuple[FitConfig, str, np.ndarray | None]:
        """The recipe with the kind of labels and the pull, a note, and its scores; None where nothing was tried."""
        is_open, may_be_classes = self._is_open(), are_many(self.train)
        if recipe.alignment_weight is not None or not (is_open or may_be_classes):
            return recipe, "", None
        usual = PULLS[0]
        found = {usual: self._pulled(recipe, usual)}
        if may_be_classes:
            as_classes = self.run(recipe.for_labels(True), "as-classes")
            if _is_better(as_classes, found[usual], SURE):
                note = "held-out queries chose the settings for classes as labels"
                return recipe.for_labels(True), note, as_classes
        if not is_open:
            return recipe, "", found[usual]
        found |= {weight: self._pulled(recipe, weight) for weight in PULLS[1:-1]}
        if _strongest(found) == PULLS[-2]:
            found[PULLS[-1]] = self._pulled(recipe, PULLS[-1])
        chosen = _strongest(found)
        if chosen == usual:
            return recipe, "", found[usual]
        note = f"held-out queries chose a weaker pull to the neighbourhoods of full width: {chosen:g}, not {usual:g}"
        return dataclasses.replace(recipe, alignment_weight=chosen), note, found[chosen]

    def _pulled(self, recipe: FitConfig, weight: float) -> np.ndarray:
        return self.run(dataclasses.replace(recipe, alignment_weight=weight), f"pull-{weight:g}")

    def _is_open(self) -> bool:
        """Whether another pull than the usual one may do better, and the held-out queries could tell."""
        return self.quality is not None and (self.quality < DOUBTFUL or len(self.held_out.query_rows) >= MANY)


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
