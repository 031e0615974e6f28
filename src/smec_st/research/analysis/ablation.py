"""What SMRL, ADS and S-XBM add: each left out in turn, in our recipe and in the published one.

At second hand, the paper's order of contributions is SMRL > ADS > S-XBM; its table was not found.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import Collection, DataError
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.report import new_figure
from smec_st.evaluation.statistics import paired_interval
from smec_st.evaluation.untrained import Transform
from smec_st.fitting.config import METHODS, FitConfig
from smec_st.research.analysis.record import training_data, write_analysis
from smec_st.research.baselines import TrainingData
from smec_st.research.compare.scoring import test_split
from smec_st.stages import Stage, check_dims, default_dims, plan_stages
from smec_st.system.matmul import fast_matmul

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL = "full"
NO_SMRL, NO_ADS, NO_MEMORY = "without SMRL", "without ADS", "without S-XBM"
VARIANTS = (FULL, NO_SMRL, NO_ADS, NO_MEMORY)
RECIPES = ("smec", "smec-published")
PAPER = {"order_of_contributions": ["SMRL", "ADS", "S-XBM"], "source": "read at second hand; values not found"}

PerSize = dict[int, np.ndarray]


def without_part(config: FitConfig, variant: str, width: int) -> tuple[FitConfig, tuple[Stage, ...] | None]:
    """Settings, and a plan where the recipe's own does not do, with one part left out.

    * Without SMRL every size's gradient reaches the columns of the smaller sizes too: all sizes train one shared map,
      as in MRL. Sizes are then prefixes, so ADS is out as well: compare with "without ADS" for SMRL alone.
    * Without ADS maps begin from the leading axes in ``grow``, from the first coordinates in ``shrink``.
    * Without S-XBM candidates are the batch's own documents.
    """
    if variant == NO_SMRL:
        return dataclasses.replace(config, order="grow", prefix_gradient=1.0, wide_weight=0.0), None
    if variant == NO_ADS and config.order == "shrink":
        plan = plan_stages(width, config.dims or default_dims(width), "shrink")
        return config, tuple(dataclasses.replace(stage, phase="compress") for stage in plan)
    if variant == NO_ADS:
        return dataclasses.replace(config, selection_ratio=1.0), None
    if variant == NO_MEMORY:
        return dataclasses.replace(config, memory=0), None
    return config, None


@fast_matmul()
def fit_variant(data: TrainingData, config: FitConfig, variant: str) -> Transform:
    """Fit a recipe as it is, or with one part left out; see :func:`without_part`.

    Args:
        data: With training judgements.
        config: The recipe.
        variant: One of :data:`VARIANTS`.
    """
    from smec_st.compressor import Compressor
    from smec_st.fitting.recipe import fit_stages

    config, stages = without_part(config, variant, data.table.width)
    return Compressor(fit_stages(data.table, data.train, config, stages=stages).maps).transform


def run(
    collection: Collection,
    out: Path,
    dims: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    recipes: Sequence[str] = RECIPES,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Test nDCG@10 of each variant and what it loses, with 95 % intervals over queries (seeds averaged first).

    Args:
        collection: With a train split, and a test split to score on.
        out: Folder for ``ablation.json`` and ``ablation.png``.
        dims: Sizes; the width and its halvings by default.
        seeds: Fits of each variant.
        recipes: Names in :data:`~smec_st.fitting.config.METHODS` that are trained.
        settings: Fields of :class:`~smec_st.FitConfig` that differ from each recipe's.

    Returns:
        What the JSON file holds.
    """
    if unknown := set(recipes) - set(RECIPES):
        raise DataError(f"recipes are {' and '.join(RECIPES)}, got {', '.join(sorted(unknown))}.")
    data = training_data(collection)
    dims = check_dims(dims or default_dims(data.table.width), data.table.width)
    split = test_split(collection)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, list[float]]] = {}
    for recipe in recipes:
        scores: dict[str, PerSize] = {}
        seconds[recipe] = {}
        for variant in VARIANTS:
            fits = []
            for seed in seeds:
                config = FitConfig.from_dict({**METHODS[recipe], **(settings or {}), "dims": dims, "seed": seed})
                began = time.perf_counter()
                transform = fit_variant(data, config, variant)
                seconds[recipe].setdefault(variant, []).append(round(time.perf_counter() - began, 1))
                fits.append({dim: _per_query(collection, split, transform, dim) for dim in dims})
            scores[variant] = {dim: np.mean([fit[dim] for fit in fits], axis=0) for dim in dims}
            rows += [
                {
                    "recipe": recipe,
                    "variant": variant,
                    "dim": dim,
                    "ndcg@10": float(scores[variant][dim].mean()),
                    "by_seed": [float(fit[dim].mean()) for fit in fits],
                    **_difference("to_full", scores[variant][dim], scores[FULL][dim]),
                }
                for dim in dims
            ]
        for row in rows:
            if (row["recipe"], row["variant"]) == (recipe, NO_SMRL):
                dim = row["dim"]
                row.update(_difference("to_without_ads", scores[NO_SMRL][dim], scores[NO_ADS][dim]))
    arguments = {
        "dims": dims,
        "seeds": list(seeds),
        "settings": {recipe: {**METHODS[recipe], **(settings or {})} for recipe in recipes},
        "split": split,
    }
    findings = {"rows": rows, "seconds": seconds, "paper": PAPER}
    return write_analysis(out, "ablation", collection, arguments, findings, _figure(rows, recipes, dims))


def _per_query(collection: Collection, split: str, transform: Transform, dim: int) -> np.ndarray:
    corpus, queries = (transform(vectors, dim) for vectors in (collection.corpus, collection.queries))
    return evaluate_retrieval(
        corpus, queries, collection.judged(split), ("ndcg@10",), own_document=collection.own_document
    )["ndcg@10"]


def _difference(name: str, variant: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    interval = paired_interval(variant, reference)
    return {name: {"difference": interval.difference, "low": interval.low, "high": interval.high}}


def _figure(rows: Sequence[Mapping[str, Any]], recipes: Sequence[str], dims: Sequence[int]) -> Figure:
    figure = new_figure(6 * len(recipes), 4.4)
    axes = figure.subplots(1, len(recipes), sharey=True, squeeze=False)[0]
    places = np.arange(len(dims))
    for panel, recipe in zip(axes, recipes, strict=True):
        for number, variant in enumerate(VARIANTS[1:]):
            by_dim = {r["dim"]: r["to_full"] for r in rows if (r["recipe"], r["variant"]) == (recipe, variant)}
            change = np.array([by_dim[dim]["difference"] for dim in dims])
            low, high = (np.array([by_dim[dim][end] for dim in dims]) for end in ("low", "high"))
            panel.errorbar(
                places + 0.2 * (number - 1),
                change,
                yerr=[change - low, high - change],
                fmt="osD"[number],
                color=f"C{number}",
                capsize=3,
                label=variant,
            )
        panel.axhline(0, color="0.4", linewidth=1)
        panel.set_xticks(places, [str(dim) for dim in dims])
        panel.set(xlabel="dimensions", title=recipe)
        panel.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel("change of test nDCG@10, 95 % interval")
    axes[0].legend()
    return figure
