"""One fully-connected layer on frozen vectors, trained for some prefixes of its output: the paper's small setting.

MRL sums the losses of all sizes on one shared layer; SMRL trains a layer for one size, freezes it, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import DataError
from smec_st.functional import contrastive_loss, rank_loss, unit
from smec_st.losses.relevance import Relevance
from smec_st.research.baselines import TrainingData

TAU = 0.05  # of the cross-entropy loss: a scale of 20, the usual one


def regression_loss(similarity: Tensor, grades: Tensor) -> Tensor:
    """Mean squared difference of similarity to 1 for relevant documents, 0 for others (inferred); both ``(B, C)``."""
    return (similarity - (grades > 0).to(similarity)).square().mean()


#: The three losses of the paper's gradient figure, ``(similarity, grades) -> scalar``; its panels' forms are inferred.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rank": rank_loss,
    "mse": regression_loss,
    "cross-entropy": lambda similarity, grades: contrastive_loss(similarity, grades, TAU),
}


@dataclass(frozen=True, kw_only=True)
class LayerTraining:
    """How a layer is trained. The paper's optimizer, batch and rate are not known.

    Args:
        loss: A name in :data:`LOSSES`.
        epochs: Passes over the training pairs.
        batch_size: Pairs per step.
        learning_rate: Of Adam.
        seed: Of the order of the pairs.
    """

    loss: str
    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise DataError(f"`loss` must be {', '.join(LOSSES)}, got {self.loss!r}.")
        if min(self.epochs, self.batch_size) < 1:
            raise DataError(f"`epochs` and `batch_size` must be 1 or more, got {self.epochs} and {self.batch_size}.")


class Batch(NamedTuple):
    """Queries beside the batch's documents.

    Attributes:
        queries: ``(B, D)``.
        documents: Distinct, and no query's own document, ``(C, D)``.
        grades: ``(B, C)``.
    """

    queries: Tensor
    documents: Tensor
    grades: Tensor


class LabelledBatches:
    """Batches of relevant pairs, each pair once per epoch; the order depends on the seed and the epoch alone.

    Args:
        data: Its training judgements must be there.
        size: Pairs per batch, at most.
        seed: Of the order.
    """

    def __init__(self, data: TrainingData, size: int, seed: int) -> None:
        if data.train is None or len(data.train.pairs) == 0:
            raise DataError("this analysis needs training judgements.")
        self._pairs, self._table = data.train.pairs, data.table
        self._relevance = Relevance(data.train, data.table)
        self._size, self._seed = size, seed

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        order = np.random.default_rng([self._seed, number]).permutation(len(self._pairs))
        for part in np.array_split(order, -(-len(order) // self._size)):
            queries = torch.from_numpy(self._table.query_ids(np.unique(self._pairs[part, 0])))
            own = self._table.own(queries).numpy()
            documents = torch.from_numpy(np.setdiff1d(self._pairs[part, 1], own))
            yield Batch(self._table[queries], self._table[documents], self._relevance(queries, documents))


def loss_by_size(mapping: Tensor, batch: Batch, dims: Sequence[int], loss: str) -> dict[int, Tensor]:
    """The loss at each prefix of a linear map's output.

    Args:
        mapping: ``(N, D)``.
        batch: What to compare.
        dims: Prefix lengths, at most ``N``.
        loss: A name in :data:`LOSSES`.
    """
    queries, documents = batch.queries @ mapping.T, batch.documents @ mapping.T
    return {dim: LOSSES[loss](unit(queries[:, :dim]) @ unit(documents[:, :dim]).T, batch.grades) for dim in dims}


def train_layer(
    weight: nn.Parameter,
    data: TrainingData,
    dims: Sequence[int],
    training: LayerTraining,
    before: Tensor | None = None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Iterator[dict[int, float]]:
    """Train a layer on the sum of the losses at ``dims``.

    Args:
        weight: The layer, ``(N, n)``; changed in place.
        data: With training judgements.
        dims: Prefixes of the layer's output that have a loss.
        training: Settings.
        before: Map of the frozen layers in front, ``(n, D)``; None for none.
        on_gradient: Called with the gradient of each step, ``(N, n)``.

    Yields:
        After each epoch, the mean training loss per size.
    """
    batches = LabelledBatches(data, training.batch_size, training.seed)
    optimizer = torch.optim.Adam([weight], lr=training.learning_rate)
    for epoch in range(training.epochs):
        seen: list[dict[int, float]] = []
        for batch in batches.epoch(epoch):
            mapping = weight if before is None else weight @ before
            losses = loss_by_size(mapping, batch, dims, training.loss)
            gradient = torch.autograd.grad(torch.stack(list(losses.values())).sum(), weight)[0]
            if on_gradient is not None:
                on_gradient(gradient)
            weight.grad = gradient
            optimizer.step()
            seen.append({dim: float(value.detach()) for dim, value in losses.items()})
        yield {dim: float(np.mean([step[dim] for step in seen])) for dim in dims}
