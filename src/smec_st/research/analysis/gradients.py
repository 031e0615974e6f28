"""Gradients that the blocks of a shared layer receive under MRL and SMRL, epoch by epoch.

SMEC holds that under MRL the gradient of an output dimension falls with the size of the loss as ``1 / delta(d)^2``, so
that the losses of small sizes rule the weights they share. Its figure has two sizes: a layer with ``2h`` outputs,
blocks ``[0:h]`` and ``[h:2h]``. Here MRL sums the losses at ``h`` and ``2h``; SMRL has the running transition alone,
the loss at ``2h``, which is what the paper's figure looks like (its two blocks receive nearly equal gradients). In the
two-term reading of a stage the layer would have both losses, and SMRL's curve would be MRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import Collection, DataError
from smec_st.evaluation.report import new_figure
from smec_st.research.analysis.layer import LOSSES, LayerTraining, train_layer
from smec_st.research.analysis.record import training_data, write_analysis
from smec_st.research.baselines import TrainingData
from smec_st.training.callbacks import GradientMeter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Chart-read: first epoch's magnitude of MRL [0:96], MRL [96:192], SMRL [0:96], SMRL [96:192]; variances by epoch.
PAPER = {
    "source": "chart-read; its measure of magnitude and variance is not stated, so compare ratios only",
    "magnitude": {
        "rank": [2.717, 1.093, 1.124, 1.037],
        "mse": [5.556, 2.381, 2.281, 2.298],
        "cross-entropy": [3.666, 1.188, 1.198, 1.054],
    },
    "variance": {
        "rank": {"0": [5.32e-5, 1.51e-5], "10": [2.43e-7, 9.88e-8], "20": [4.68e-8, 2.09e-8]},
        "mse": {"0": [2.11e-4, 7.17e-5]},
    },
}

#: Loss, method, quantity: a list per block, of a value per epoch.
Curves = dict[str, dict[str, dict[str, list[list[float]]]]]


class BlockMeter:
    """Running statistics of gradients, per block of rows.

    Magnitude is the mean length of a row's gradient over rows and steps: a row holds the weights ``w_i`` of one output
    dimension. Variance is that of :class:`~smec_st.training.callbacks.GradientMeter`; 0 of a single step.

    Args:
        edges: Where blocks begin, and the last one ends.
    """

    def __init__(self, edges: Sequence[int]) -> None:
        self._edges = edges
        self._lengths: list[Tensor] = []
        self._variance = GradientMeter()

    def add(self, gradient: Tensor) -> None:
        """Count one step's gradient, ``(N, D)``."""
        gradient = gradient.double()
        self._lengths.append(gradient.norm(dim=1))
        self._variance.add(gradient)

    def take(self) -> dict[str, list[float]]:
        """Magnitude and variance of each block since the last call; at least one step must have been counted."""
        length, self._lengths = torch.stack(self._lengths).mean(dim=0), []
        magnitude = [float(length[first:last].mean()) for first, last in pairwise(self._edges)]
        return {"magnitude": magnitude, "variance": self._variance.take(self._edges) or [0.0] * len(magnitude)}


def measure(
    data: TrainingData, dims: Sequence[int], half: int, training: LayerTraining
) -> list[dict[str, list[float]]]:
    """Train a layer ``D -> 2 half``, from the identity, on the losses at ``dims``; one reading per epoch."""
    weight = nn.Parameter(torch.eye(2 * half, data.table.width))
    meter = BlockMeter((0, half, 2 * half))
    epochs = train_layer(weight, data, dims, training, on_gradient=meter.add)
    return [meter.take() for _ in epochs]


def expected_ratio(data: TrainingData, half: int) -> float:
    """What MRL's first block should receive, in units of SMRL's: ``1 + delta(2 half)^2 / delta(half)^2``.

    ``delta(d)^2`` is the mean squared length of the first ``d`` coordinates. Inferred: the derivative of a cosine by a
    coordinate is ``(y_i - s x_i) / delta^2``, and MRL adds the loss at ``half`` to the one at ``2 half``.
    """
    squares = (data.corpus.astype(np.float64) ** 2).mean(axis=0)
    return float(1 + squares[: 2 * half].sum() / squares[:half].sum())


def run(
    collection: Collection,
    out: Path,
    half: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int = 40,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> dict[str, Any]:
    """Gradient magnitude and variance of two blocks of a layer, for three losses, under MRL and SMRL.

    Args:
        collection: With a train split.
        out: Folder for ``gradients.json`` and ``gradients.png``.
        half: Width of a block; a quarter of the vectors' width by default, as in the paper's figure (96 and 192).
        seeds: Orders of the batches; figures are means over them.
        epochs: Passes over the training pairs.
        batch_size: Pairs per step, at most a quarter of all.
        learning_rate: Of Adam; the paper's optimizer is not known.

    Returns:
        What the JSON file holds.
    """
    data = training_data(collection)
    half = data.table.width // 4 if half is None else half
    if not 1 <= half <= data.table.width // 2:
        raise DataError(f"`half` must be in [1, {data.table.width // 2}], got {half}.")
    assert data.train is not None
    batch_size = min(batch_size, max(1, len(data.train.pairs) // 4))  # a variance needs several batches an epoch
    methods = {"MRL": (2 * half, half), "SMRL": (2 * half,)}
    curves: Curves = {}
    for loss in LOSSES:
        trainings = [
            LayerTraining(loss=loss, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
            for seed in seeds
        ]
        curves[loss] = {
            method: _mean([measure(data, dims, half, training) for training in trainings])
            for method, dims in methods.items()
        }
    findings = {
        "blocks": [[0, half], [half, 2 * half]],
        "expected_ratio": expected_ratio(data, half),
        "ratios": {loss: _ratios(of_loss) for loss, of_loss in curves.items()},
        "curves": curves,
        "paper": PAPER,
    }
    arguments = {
        "half": half,
        "seeds": list(seeds),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    return write_analysis(out, "gradients", collection, arguments, findings, _figure(curves, half))


def _mean(runs: Sequence[list[dict[str, list[float]]]]) -> dict[str, list[list[float]]]:
    """Per quantity and block a value per epoch, mean over the runs."""
    return {
        quantity: np.mean([[reading[quantity] for reading in run] for run in runs], axis=0).T.tolist()
        for quantity in ("magnitude", "variance")
    }


def _ratios(of_loss: dict[str, dict[str, list[list[float]]]]) -> dict[str, Any]:
    """First epoch's magnitudes against each other; variance of MRL by that of SMRL in some epochs."""
    mrl, smrl = (np.array(of_loss[method]["magnitude"])[:, 0] for method in ("MRL", "SMRL"))
    variance = {method: np.mean(of_loss[method]["variance"], axis=0) for method in of_loss}
    return {
        "mrl_first_by_second_block": mrl[0] / mrl[1],
        "smrl_first_by_second_block": smrl[0] / smrl[1],
        "first_block_mrl_by_smrl": mrl[0] / smrl[0],
        "variance_mrl_by_smrl": {
            str(epoch): float(variance["MRL"][epoch] / variance["SMRL"][epoch])
            for epoch in range(0, len(variance["MRL"]), 10)
        },
    }


def _figure(curves: Curves, half: int) -> Figure:
    figure = new_figure(12, 6.4)
    axes = figure.subplots(2, len(curves), sharex=True)
    for column, (loss, of_loss) in enumerate(curves.items()):
        for row, quantity in enumerate(("magnitude", "variance")):
            panel = axes[row, column]
            for color, (method, values) in zip(("C3", "C0"), of_loss.items(), strict=True):
                for line, block in ((0, f"[0:{half}]"), (1, f"[{half}:{2 * half}]")):
                    style = ("-", "--")[line]
                    panel.plot(values[quantity][line], color=color, linestyle=style, label=f"{method} {block}")
            panel.set_yscale("log")
            panel.grid(alpha=0.3, which="both")
        axes[0, column].set_title(f"{loss} loss")
        axes[1, column].set_xlabel("epoch")
    axes[0, 0].set_ylabel("gradient magnitude")
    axes[1, 0].set_ylabel("gradient variance over steps")
    axes[0, 0].legend(fontsize=8)
    return figure
