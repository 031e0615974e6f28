"""Training loss and dev quality by epoch, MRL against SMRL.

The paper's curves run for 40 epochs; SMRL is flat from about epoch 15 and ends higher. At which size is not stated,
so every size has its panel here. MRL trains all sizes at once on one shared layer; SMRL one size after another, each
on a layer of its own after the frozen ones, for as many epochs each. There is no selection and no memory: what
differs is the order alone. After the epochs of one stage MRL has seen each size's loss as often as SMRL will have;
after those of all stages it has made as many steps. Both are reported, as either may be called fair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import Collection
from smec_st.evaluation.report import new_figure
from smec_st.research.analysis.layer import LayerTraining, train_layer
from smec_st.research.analysis.record import training_data, write_analysis
from smec_st.research.baselines import TrainingData
from smec_st.research.baselines.training import DevScore
from smec_st.stages import check_dims, default_dims

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "source": "chart-read; size and loss not stated",
    "epochs": 40,
    "loss": {"MRL": [0.101, 0.056], "SMRL": [0.090, 0.047]},
    "final_ndcg@10": {"MRL": 0.459, "SMRL": 0.471},
    "flat_from_epoch": {"SMRL": 15},
}
LAST = 5  # epochs that the end of a curve is the mean of
NEAR = 0.1  # of the curve's range, around that mean

Curves = dict[int, dict[str, list[float]]]


def settled_epoch(values: Sequence[float]) -> int:
    """The first epoch from which a curve, one value per epoch, stays near its end.

    Example:
        >>> settled_epoch([5.0, 3.0, 1.0, 1.1, 1.0, 1.0, 1.0, 1.0])
        2
    """
    curve = np.asarray(values)
    far = np.abs(curve - curve[-LAST:].mean()) > NEAR * np.ptp(curve)
    return int(np.flatnonzero(far)[-1]) + 1 if far.any() else 0


class PrefixScores:
    """Dev nDCG@10 of a linear map's prefixes.

    Args:
        data: With held-out judgements.
        dims: Prefix lengths.
    """

    def __init__(self, data: TrainingData, dims: Sequence[int]) -> None:
        self._by_dim = {dim: DevScore(data, (dim,), max_corpus=100_000) for dim in dims}

    def __call__(self, mapping: Tensor, dim: int) -> float:
        """The score of a map ``(N, D)`` cut to ``dim`` outputs."""
        rows = mapping.detach().numpy()[:dim]
        return self._by_dim[dim].of_prefixes(lambda vectors: vectors @ rows.T)


def train_together(data: TrainingData, scores: PrefixScores, dims: Sequence[int], training: LayerTraining) -> Curves:
    """MRL: one layer, the losses of all sizes in every step. Loss and dev score by size and epoch."""
    weight = nn.Parameter(torch.eye(max(dims), data.table.width))
    curves: Curves = {dim: {"loss": [], "ndcg@10": []} for dim in dims}
    for losses in train_layer(weight, data, dims, training):
        for dim in dims:
            curves[dim]["loss"].append(losses[dim])
            curves[dim]["ndcg@10"].append(scores(weight, dim))
    return curves


def train_in_turn(data: TrainingData, scores: PrefixScores, dims: Sequence[int], training: LayerTraining) -> Curves:
    """SMRL: for each size, widest first, a layer after the frozen ones, with this size's loss alone."""
    before = torch.eye(data.table.width)
    curves: Curves = {}
    for dim in dims:
        weight = nn.Parameter(torch.eye(dim, len(before)))
        curves[dim] = {"loss": [], "ndcg@10": []}
        for losses in train_layer(weight, data, (dim,), training, before):
            curves[dim]["loss"].append(losses[dim])
            curves[dim]["ndcg@10"].append(scores(weight @ before, dim))
        before = (weight @ before).detach()
    return curves


def run(
    collection: Collection,
    out: Path,
    loss: str = "rank",
    dims: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 40,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> dict[str, Any]:
    """Curves of training loss and dev nDCG@10, and from which epoch on they are flat.

    Args:
        collection: With a train split; without a dev split a tenth of the training queries is watched.
        out: Folder for ``convergence-LOSS.json`` and ``convergence-LOSS.png``.
        loss: ``rank``, ``mse`` or ``cross-entropy``.
        dims: Sizes below the width; its halvings by default.
        seeds: Orders of the batches; curves are means over them.
        epochs: Passes over the training pairs for each stage of SMRL; MRL runs on for the epochs of all stages.
        batch_size: Pairs per step.
        learning_rate: Of Adam; the paper's optimizer is not known.

    Returns:
        What the JSON file holds.
    """
    stage = LayerTraining(loss=loss, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    data = training_data(collection)
    dims = check_dims(dims or default_dims(data.table.width)[1:], data.table.width - 1)
    scores = PrefixScores(data, dims)
    of_seed = [dataclasses.replace(stage, seed=seed) for seed in seeds]
    of_all_stages = [dataclasses.replace(one, epochs=epochs * len(dims)) for one in of_seed]
    together = _mean([train_together(data, scores, dims, training) for training in of_all_stages])
    in_turn = _mean([train_in_turn(data, scores, dims, training) for training in of_seed])
    short = {dim: {what: curve[:epochs] for what, curve in together[dim].items()} for dim in dims}
    compared = {"MRL": short, "MRL, steps of all stages": together, "SMRL": in_turn}
    curves = {"MRL": together, "SMRL": in_turn}
    findings = {
        "start_ndcg@10": {dim: scores(torch.eye(data.table.width), dim) for dim in dims},
        "summary": [_summary(method, dim, compared[method][dim]) for dim in dims for method in compared],
        "curves": curves,
        "paper": PAPER,
    }
    arguments = {
        "loss": loss,
        "dims": dims,
        "seeds": list(seeds),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    return write_analysis(
        out, f"convergence-{loss}", collection, arguments, findings, _figure(curves, dims, loss, epochs)
    )


def _mean(runs: Sequence[Curves]) -> Curves:
    return {
        dim: {what: np.mean([run[dim][what] for run in runs], axis=0).tolist() for what in curves}
        for dim, curves in runs[0].items()
    }


def _summary(method: str, dim: int, curve: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "method": method,
        "dim": dim,
        "final_loss": float(np.mean(curve["loss"][-LAST:])),
        "final_ndcg@10": float(np.mean(curve["ndcg@10"][-LAST:])),
        "best_ndcg@10": float(np.max(curve["ndcg@10"])),
        "loss_flat_from_epoch": settled_epoch(curve["loss"]),
        "ndcg@10_flat_from_epoch": settled_epoch(curve["ndcg@10"]),
    }


def _figure(curves: dict[str, Curves], dims: Sequence[int], loss: str, epochs: int) -> Figure:
    figure = new_figure(3.2 * len(dims) + 1, 5.6)
    axes = figure.subplots(2, len(dims), sharex=True, squeeze=False)
    for column, dim in enumerate(dims):
        stage = np.arange(column * epochs, (column + 1) * epochs)
        for row, what in enumerate(("loss", "ndcg@10")):
            panel = axes[row, column]
            panel.axvspan(stage[0], stage[-1] + 1, color="0.94", label="stage of this size")
            panel.plot(curves["MRL"][dim][what], color="C3", label="MRL")
            panel.plot(stage, curves["SMRL"][dim][what], color="C0", label="SMRL")
            panel.grid(alpha=0.3)
        axes[0, column].set_title(f"{dim} dimensions")
        axes[1, column].set_xlabel("epoch, all stages")
    axes[0, 0].set_ylabel(f"training loss ({loss})")
    axes[1, 0].set_ylabel("dev nDCG@10")
    axes[0, 0].legend()
    return figure
