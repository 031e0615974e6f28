"""CSR (Wen et al., ICML 2025, https://arxiv.org/abs/2503.01776): sparse codes from a wide autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import unit_rows
from smec_st.functional import NEVER, contrastive_loss, unit
from smec_st.research.baselines.interface import Size, TrainingData
from smec_st.research.baselines.training import Batches, Pool, Pools, dev_score, train

if TYPE_CHECKING:
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder


@dataclass(frozen=True)
class CSR:
    """A tied autoencoder whose code is wider than its input, and which keeps only the ``k`` largest entries.

    Autoencoder and loss, ``L_k + L_4k / 8 + beta L_aux + gamma L_contrastive``, are those of sentence-transformers.
    One autoencoder serves all sizes; a size keeps as many entries as fit into its bytes, see :func:`size_of_code`.

    Published (paper and the authors' code for text retrieval): four times the width, ``k = 32``, auxiliary ``k`` a
    sixteenth of the wide layer, weights 1/32 and 0.1, temperature 0.2, batch 128; learning rate 4e-5 for ten epochs
    of far larger data. Chosen here, on dev queries of SciFact and XQuAD-R: the learning rate, one autoencoder instead
    of one per size, and input scaled to unit variance per dimension, without which the reconstruction terms are
    negligible. Random documents join the batch as negatives; a document that is relevant to another query of the batch
    is not a negative.

    Without labels each query or document is its own positive in the contrastive term, as in the authors' code.

    Args:
        expansion: Width of the code as a multiple of the input's.
        k: Entries kept in training.
        beta: Weight of ``L_aux``.
        gamma: Weight of the contrastive term.
        tau: Temperature of the contrastive term.
        batch_size: Pairs per step; the same number of further documents joins them.
        learning_rate: Learning rate of Adam.
        steps: Maximum number of steps.
        patience: Steps without better held-out nDCG@10 before early stopping.
    """

    expansion: int = 4
    k: int = 32
    beta: float = 1 / 32
    gamma: float = 0.1
    tau: float = 0.2
    batch_size: int = 128
    learning_rate: float = 2e-3
    steps: int = 1000
    patience: int = 300

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> CSREncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        from sentence_transformers.sparse_encoder.losses import CSRLoss
        from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

        width = data.table.width
        hidden = self.expansion * width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = SparseAutoEncoder(width, hidden, k=min(self.k, hidden // 4), k_aux=max(1, hidden // 16))
        loss = CSRLoss(autoencoder, Contrastive(self.tau), beta=self.beta, gamma=self.gamma)
        encoder = CSREncoder(autoencoder, tuple(size_of_code(dim, hidden) for dim in sorted(dims, reverse=True)))
        pools = (
            SelfPairs(data, self.batch_size, seed)
            if data.train is None
            else Pools(data, self.batch_size, self.batch_size, seed, "CSR")
        )

        def step() -> Tensor:
            pool = pools.next()
            rows = (pool.query_rows, pool.document_rows)
            sides = [{"sentence_embedding": scaled(data.table[side])} for side in rows]
            terms: dict[str, Tensor] = loss(sides, pool.grades.masked_fill(pool.excluded, -1))
            return torch.stack(list(terms.values())).sum()

        held_out = dev_score(data, [size.dim for size in encoder.sizes])
        train(
            autoencoder.parameters(),
            step,
            None if held_out is None else lambda: held_out(encoder.codes),
            steps=self.steps,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
        return encoder


@dataclass(frozen=True)
class CSREncoder:
    """Encodes vectors as sparse codes that are compared by cosine, as the authors do.

    The values of documents are rounded to 16 bits; queries stay float32.

    Args:
        autoencoder: The trained autoencoder.
        sizes: Number of entries and their bytes, in descending order of bytes.
    """

    autoencoder: SparseAutoEncoder
    sizes: tuple[Size, ...]

    def codes(self, vectors: np.ndarray, kept: int, chunk: int = 2048) -> np.ndarray:
        """Return codes of length 1 with at most ``kept`` non-zero entries. ``(n, D) -> (n, hidden)`` float32."""
        result = np.empty((len(vectors), self.autoencoder.hidden_dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(vectors), chunk):
                rows = torch.from_numpy(unit_rows(vectors[start : start + chunk]))
                features = self.autoencoder({"sentence_embedding": scaled(rows)}, max_active_dims=kept)
                result[start : start + chunk] = unit_rows(features["sentence_embedding"].numpy())
        return result

    def documents(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Return codes with the stored, 16-bit values. ``(n, D) -> (n, hidden)`` float32."""
        return self.codes(vectors, size.dim).astype(np.float16).astype(np.float32)

    def queries(self, vectors: np.ndarray, size: Size) -> np.ndarray:
        """Return codes. ``(n, D) -> (n, hidden)`` float32."""
        return self.codes(vectors, size.dim)


class Contrastive(nn.Module):
    """InfoNCE on the cosine of codes, with the interface that ``CSRLoss`` calls.

    Args:
        tau: Temperature.
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Compute :func:`~smec_st.functional.contrastive_loss`.

        Args:
            embeddings: Codes of queries ``(B, hidden)`` and of documents ``(C, hidden)``.
            labels: Grades, -1 where a document is ignored, ``(B, C)``.
        """
        similarity = unit(embeddings[0]) @ unit(embeddings[1]).T
        return contrastive_loss(similarity.masked_fill(labels < 0, NEVER), labels.clamp_min(0), self.tau)


def scaled(rows: Tensor) -> Tensor:
    """Scale rows of length 1 to about unit variance per dimension. ``(n, D) -> (n, D)``."""
    return rows * math.sqrt(rows.shape[1])


def size_of_code(dim: int, hidden: int) -> Size:
    """Return the largest code that takes no more bytes than ``dim`` float32 numbers.

    An entry is a 16-bit value and its position, ``ceil(log2(hidden))`` bits.

    Args:
        dim: Width of the float32 vector.
        hidden: Width of the code.

    Returns:
        The number of entries, as ``dim``, and their bytes.
    """
    bits = 16 + (hidden - 1).bit_length()
    kept = min(max(1, 32 * dim // bits), hidden)
    return Size(kept, -(-kept * bits // 8))


class SelfPairs:
    """Documents and training queries in random order; each is its own and only positive.

    Args:
        data: Training data; its judgements are not read.
        batch_size: Vectors per step.
        seed: Random seed of the order.
    """

    def __init__(self, data: TrainingData, batch_size: int, seed: int) -> None:
        self._rows = np.r_[np.arange(data.table.corpus_size), data.table.query_ids(data.queries)]
        self._batches = Batches(len(self._rows), batch_size, seed)

    def next(self) -> Pool:
        """Return the next batch, as queries and as documents."""
        rows = torch.from_numpy(self._rows[self._batches.next()])
        count = len(rows)
        excluded = torch.zeros(count, count, dtype=torch.bool)
        return Pool(rows, rows, count, torch.arange(count), torch.eye(count), excluded)
