"""How strongly a fit holds to the neighbourhoods of full width, by trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from smec_st.config import CLASS_DEFAULTS, PAIR_DEFAULTS, FitConfig
from smec_st.data import VectorTable
from smec_st.guard import is_sure
from smec_st.labels import Labels
from smec_st.recipe import fit_stages, labels_are_classes
from smec_st.stages import default_dims

PULLS = (PAIR_DEFAULTS["alignment_weight"], 2.0, CLASS_DEFAULTS["alignment_weight"], 0.0)  # falling
DOUBTFUL = 0.6  # nDCG@10 of full-width search; below, its neighbourhoods may be the wrong ones to keep
MANY = 200  # held-out queries that can tell a small gain from chance
SURE, SURE_OF_FEW = 1.0, 2.0  # standard errors; the usual pull is left by few queries only for a gain of more


def settle_pull(
    table: VectorTable, labels: Labels, recipe: FitConfig, *, work_dir: Path | None = None, progress: bool = False
) -> tuple[FitConfig, str]:
    """The recipe with the ``alignment_weight`` that held-out queries choose, and a note if it is not the usual one.

    The pull to full-width neighbourhoods stands in for labels that are not there. Where labels are many it holds them
    back; where full-width search ranks the judged documents poorly, its neighbourhoods may rest on directions that
    mean nothing for them. In these cases, unless the recipe names a weight or labels are classes, the middle one of
    the sizes is trained alone, as a linear map, with one of :data:`PULLS` after the other, as long as the weaker one
    ranks held-out queries better by :data:`SURE` standard errors, each as far from its start as serves it best.

    Args:
        table: Corpus and queries.
        labels: What trains and what chooses; of folds, the first.
        recipe: Settings, with ``dims`` or None for the default sizes.
        work_dir: Where the trials' checkpoints go; None to keep none.
        progress: Show progress bars.
    """
    split = labels.one_split()
    if split is None or recipe.alignment_weight is not None or recipe.order != "grow" or not recipe.guard:
        return recipe, ""
    if not _is_open(labels, len(split[1].query_rows)) or labels_are_classes(table, labels.train):
        return recipe, ""
    sizes = recipe.dims or default_dims(table.width)
    trial = dataclasses.replace(recipe, dims=(sizes[(len(sizes) - 1) // 2],), narrow_hidden=0.0)

    def scores(weight: float) -> np.ndarray:
        name = f"pull-{weight:g}"
        (*_, report) = fit_stages(
            table,
            *split,
            dataclasses.replace(trial, alignment_weight=weight),
            work_dir=None if work_dir is None else work_dir / name,
            progress=progress,
            title=name.replace("-", " "),
        ).reports
        return max(map(np.array, report.scores.values()), key=np.mean)

    chosen, best = PULLS[0], scores(PULLS[0])
    for weight in PULLS[1:]:
        weaker = scores(weight)
        gain = weaker - best  # all 0 where both keep the start: no reason to change anything
        needed = SURE_OF_FEW if chosen == PULLS[0] and len(gain) < MANY else SURE
        if not (gain.any() and is_sure(gain, needed)):
            break
        chosen, best = weight, weaker
    if chosen == PULLS[0]:
        return recipe, ""
    note = f"held-out queries chose a weaker pull to the neighbourhoods of full width: {chosen:g}, not {PULLS[0]:g}"
    return dataclasses.replace(recipe, alignment_weight=chosen), note


def _is_open(labels: Labels, held_out: int) -> bool:
    """Whether another pull than the usual one may do better, and the held-out queries could tell."""
    return labels.quality is not None and (labels.quality < DOUBTFUL or held_out >= MANY)
