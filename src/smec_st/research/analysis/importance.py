"""Measure which dimensions are important, and how many of them each method keeps.

The paper's importance is WARE, the weighted average reconstruction error; it reports that at 256 of 1536 dimensions
ADS keeps 83.6 % of the important ones and MRL 17.4 %. Its formula was not found in public material; ours is inferred
from the name (:mod:`.ware`). Note that 256 / 1536 = 16.7 %, so 17.4 % is what any blind choice keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smec_st.data import Collection, DataError, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.report import new_figure
from smec_st.fitting.config import METHODS, FitConfig
from smec_st.fitting.recipe import fit_stages
from smec_st.functional import leftover_axes
from smec_st.research.analysis.record import training_data, write_analysis
from smec_st.research.analysis.ware import chance_deviation, leverage, most_important, similar_and_random_pairs, ware
from smec_st.research.baselines import TrainingData
from smec_st.research.compare.scoring import test_split
from smec_st.stages import Stage, check_dims, default_dims
from smec_st.training.moments import corpus_moments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {"width": 1536, "dim": 256, "ads": 0.836, "mrl": 0.174, "source": "read at second hand"}
IDEAL = "most important"  # keeps them all by definition; what matters is the quality it has

Directions = Mapping[int, np.ndarray]


# -- what is kept -----------------------------------------------------------------------------------------------------


def untrained_directions(data: TrainingData, dims: Sequence[int], importance: np.ndarray) -> dict[str, Directions]:
    """Rows that truncation, uncentred PCA and the coordinates of greatest importance or variance keep at each size."""
    one = np.eye(data.table.width)
    axes = leftover_axes(corpus_moments(data.table)[1], torch.zeros(0, data.table.width), max(dims)).numpy()
    by_variance = np.argsort(-data.corpus.var(axis=0, dtype=np.float64), kind="stable")
    return {
        IDEAL: {dim: one[most_important(importance, dim)] for dim in dims},
        "truncation": {dim: one[:dim] for dim in dims},
        "variance": {dim: one[by_variance[:dim]] for dim in dims},
        "PCA": {dim: axes[:dim] for dim in dims},
    }


def selected_alone(data: TrainingData, dims: Sequence[int], config: FitConfig) -> Directions:
    """Coordinates that ADS picks when nothing else is trained, from the full width for each size.

    One ``select`` stage per size on an identity map; loss and memory are those of ``config``.
    """
    width = data.table.width
    config = dataclasses.replace(config, selection_steps=config.steps)
    chosen = {}
    for dim in dims:
        stage = Stage(index=0, order="shrink", phase="select", in_dim=width, out_dim=dim, candidates=width)
        report = fit_stages(data.table, data.train, config, stages=(stage,)).reports[0]
        chosen[dim] = np.eye(width)[report.selected]
    return chosen


def selected_jointly(data: TrainingData, dims: Sequence[int], config: FitConfig) -> tuple[Directions, Directions]:
    """ADS trained together with its layer, size after size, as published.

    Returns:
        Per size the coordinates picked, and the rows of the whole trained map. Each layer starts at the identity, so
        an output still means mostly the coordinate it began as: picks are followed back through the stages that way.

    Raises:
        DataError: If layers are not linear, as no span of input coordinates belongs to such a map.
    """
    if config.hidden_dim:
        raise DataError(f"importance is for linear layers; leave out `hidden_dim`, which is {config.hidden_dim}.")
    fitted = fit_stages(data.table, data.train, dataclasses.replace(config, dims=tuple(dims)))
    picks, maps = {}, {}
    rows = np.arange(data.table.width)
    for report in fitted.reports:
        rows = rows[report.selected]
        picks[report.dim] = np.eye(data.table.width)[rows]
    for folded, sizes in fitted.maps:
        maps[sizes[0]] = folded.layers[0].weight
    return picks, maps


def directions_by_method(
    data: TrainingData, dims: Sequence[int], importance: np.ndarray, configs: Sequence[FitConfig]
) -> dict[str, list[Directions]]:
    """What each method keeps, once per config for those that are trained, once for the others."""
    found = {name: [directions] for name, directions in untrained_directions(data, dims, importance).items()}
    for config in configs:
        picks, maps = selected_jointly(data, dims, config)
        found.setdefault("ADS alone", []).append(selected_alone(data, dims, config))
        found.setdefault("ADS with its layer", []).append(picks)
        found.setdefault("SMEC's whole map", []).append(maps)
    return found


# -- the analysis -----------------------------------------------------------------------------------------------------


def run(
    collection: Collection,
    out: Path,
    dims: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    documents: int = 1000,
    neighbors: int = 10,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Share of the ``m`` most important dimensions that each method keeps at size ``m``.

    The share is the mean :func:`~.ware.leverage` of the ``m`` dimensions of greatest WARE. Beside it
    stand the share of all WARE that is kept, and the nDCG@10 of the compressed vectors, which says whether importance
    matters. ADS is trained as published ("smec-published").

    Args:
        collection: With a train split, and a test split to score on.
        out: Folder for ``importance.json`` and ``importance.png``.
        dims: Sizes below the width; its halvings by default.
        seeds: One training of ADS each; shares are means.
        documents: See :func:`~smec_st.research.analysis.ware.similar_and_random_pairs`.
        neighbors: See :func:`~smec_st.research.analysis.ware.similar_and_random_pairs`.
        settings: Fields of :class:`~smec_st.FitConfig` that differ from "smec-published".

    Returns:
        What the JSON file holds.
    """
    given = {**METHODS["smec-published"], **(settings or {})}
    data = training_data(collection)
    split = test_split(collection)
    width = data.table.width
    dims = check_dims(dims or default_dims(width)[1:], width - 1)
    pairs = similar_and_random_pairs(data, documents, neighbors, seed=0)
    importance = ware(data.table[torch.arange(len(data.table))].numpy(), pairs)
    directions = directions_by_method(
        data, dims, importance, [FitConfig.from_dict({**given, "seed": s}) for s in seeds]
    )
    rows = [
        {
            "method": method,
            "dim": dim,
            **_shares([of_seed[dim] for of_seed in by_seed], importance, dim),
            "ndcg@10": float(np.mean([_quality(collection, split, of_seed[dim]) for of_seed in by_seed])),
        }
        for method, by_seed in directions.items()
        for dim in dims
    ]
    findings = {
        "pairs": len(pairs),
        "chance": {dim: {"share": dim / width, "deviation": chance_deviation(width, dim)} for dim in dims},
        "original_ndcg@10": _quality(collection, split, np.eye(width)),
        "rows": rows,
        "ware": importance.tolist(),
        "ware_spread": float(importance.max() / np.median(importance)),
        "paper": PAPER,
    }
    arguments = {
        "dims": dims,
        "seeds": list(seeds),
        "documents": documents,
        "neighbors": neighbors,
        "split": split,
        "settings": given,
    }
    return write_analysis(out, "importance", collection, arguments, findings, _figure(findings, dims, width))


def _shares(directions: Sequence[np.ndarray], importance: np.ndarray, dim: int) -> dict[str, Any]:
    best = most_important(importance, dim)
    leverages = [leverage(rows) for rows in directions]
    by_seed = [float(kept[best].mean()) for kept in leverages]
    mass = [float((kept * importance).sum() / importance.sum()) for kept in leverages]
    return {"share_kept": float(np.mean(by_seed)), "by_seed": by_seed, "ware_kept": float(np.mean(mass))}


def _quality(collection: Collection, split: str, directions: np.ndarray) -> float:
    corpus, queries = (unit_rows(unit_rows(side) @ directions.T) for side in (collection.corpus, collection.queries))
    scores = evaluate_retrieval(
        corpus, queries, collection.judged(split), ("ndcg@10",), own_document=collection.own_document
    )
    return float(scores["ndcg@10"].mean())


def _figure(findings: Mapping[str, Any], dims: Sequence[int], width: int) -> Figure:
    figure = new_figure(15, 4.6)
    left, middle, right = figure.subplots(1, 3)
    importance = np.sort(findings["ware"])[::-1]
    left.plot(np.arange(1, width + 1), importance / importance.mean(), color="0.2")
    left.axhline(1, color="0.6", linewidth=0.8)
    left.set(xlabel="dimension, by descending importance", ylabel="WARE (mean = 1)", ylim=(0, None))
    left.set_title("importance of single dimensions")
    ascending = np.sort(dims)
    chance = ascending / width
    deviation = np.array([chance_deviation(width, dim) for dim in ascending])
    middle.fill_between(ascending, chance - 2 * deviation, chance + 2 * deviation, color="0.88", label="chance ± 2 sd")
    middle.plot(ascending, chance, color="0.5", linestyle="--", label="chance m/D")
    for number, method in enumerate(dict.fromkeys(row["method"] for row in findings["rows"])):
        rows = {row["dim"]: row for row in findings["rows"] if row["method"] == method}
        style: dict[str, Any] = {"marker": "*osD^vP"[number], "color": f"C{number}", "label": method, "alpha": 0.85}
        if method != IDEAL:
            middle.plot(ascending, [rows[dim]["share_kept"] for dim in ascending], **style)
        right.plot(ascending, [rows[dim]["ndcg@10"] for dim in ascending], **style)
    middle.set(ylabel="share of the m most important kept", ylim=(0, 1), title="important dimensions kept")
    right.axhline(findings["original_ndcg@10"], color="0.25", linestyle=(0, (5, 3)), label="original")
    right.set(ylabel="nDCG@10", title="quality")
    for panel in (middle, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(ascending, [str(dim) for dim in ascending])
        panel.minorticks_off()
        panel.set_xlabel(f"dimensions kept, m of {width}")
        panel.legend(fontsize=8)
    return figure
