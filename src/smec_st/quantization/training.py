"""The last stage: train map and codes together, through the rounding.

The map's last layer and what the code stands for (centroids, ranges) are moved so that *decoded* documents are found
by float queries. The rounding has no useful gradient, so the step passes straight through it (Bengio et al., 2013):
the map's gradient is taken as if the decoded document were the mapped one, while the centroids get their own. Loss and
candidates are those of the compressor's own stages.

Training product codes for ranking follows JPQ (Zhan et al., CIKM 2021) and RepCONC (Zhan et al., WSDM 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smec_st.data import DataError, Qrels, Table
from smec_st.functional import alignment_kl, contrastive_loss, unit
from smec_st.losses.relevance import Relevance
from smec_st.maps import FoldedMap
from smec_st.quantization.codecs import Codec
from smec_st.quantization.rounding import Rounding
from smec_st.system.matmul import fast_matmul


@dataclass(frozen=True, kw_only=True)
class LastStage:
    """Settings of the last stage.

    Args:
        steps: Steps; 0 for none.
        batch_size: Pairs per step.
        candidates: Documents that a batch is compared with, its own included.
        learning_rate: Learning rate of the map (Adam, with a cosine schedule).
        code_learning_rate: Of centroids and ranges.
        tau: Temperature of the contrastive term.
        alignment_weight: Weight of the pull towards the neighbourhoods of full width.
        alignment_tau: Its temperature.
        seed: Of everything random.
    """

    steps: int = 80
    batch_size: int = 256
    candidates: int = 4096
    learning_rate: float = 1e-3
    code_learning_rate: float = 1e-3
    tau: float = 0.12
    alignment_weight: float = 6.0
    alignment_tau: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size - 1, self.candidates - 1) < 0:
            raise DataError("`steps` must be 0 or more, `batch_size` and `candidates` 1 or more.")


@fast_matmul()
def train_codes(
    table: Table,
    folded: FoldedMap,
    codec: Codec,
    qrels: Qrels | None,
    queries: np.ndarray,
    config: LastStage,
    teacher_map: FoldedMap | None = None,
) -> Callable[[float], tuple[FoldedMap, Codec]]:
    """Train the last layer of a map together with a codec.

    Args:
        table: Corpus and queries.
        folded: Map to start from; any rotation of the codec's is already part of it.
        codec: Codec to start from, without rotation.
        qrels: Training judgements; None to keep the neighbourhoods of full width alone.
        queries: Query rows to train on without judgements, ``(q,)``.
        config: Settings.
        teacher_map: The map whose neighbourhoods are kept; None for those of the table's own vectors.

    Returns:
        Map and codec as a function of how far to go from the start, 0, to what was learned, 1.
    """
    rng = np.random.default_rng([config.seed, folded.out_dim, codec.bytes])
    start = torch.from_numpy(folded.layers[-1].weight)
    weight = torch.nn.Parameter(start.clone())
    scale = torch.nn.Parameter(torch.zeros(()))
    codes = Rounding(codec)
    relevance = None if qrels is None else Relevance(qrels, table)
    of_map = {"params": [weight], "lr": config.learning_rate}
    of_codes = {"params": [*codes.parameters(), scale], "lr": config.code_learning_rate}
    optimizer = torch.optim.Adam([of_map, of_codes])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1))
    before = folded.ending(np.eye(folded.layers[-1].weight.shape[1]))
    is_plain = len(folded.layers) == 1
    for _ in range(config.steps):
        anchors, pool, own = _batch(table, qrels, queries, config, rng)
        asked, offered = table[anchors], table[pool]
        near_to, near_from = offered, asked
        if teacher_map is not None:
            near_to, near_from = (torch.from_numpy(teacher_map.compress(x.numpy())) for x in (offered, asked))
        inner = (asked, offered) if is_plain else tuple(torch.from_numpy(before(x.numpy())) for x in (asked, offered))
        query, document = unit(inner[0] @ weight.T), unit(inner[1] @ weight.T)
        stored = unit(codes.decoded(document))
        student = query @ stored.T
        other = pool != table.own(anchors).unsqueeze(1)
        loss = _alignment(student, near_from @ near_to.T, other, config)
        if relevance is not None:
            grades = relevance(anchors, pool)
            loss = loss + contrastive_loss(student.masked_fill(~other, -1e9), grades, config.tau * scale.exp())
            near = pool[own].unsqueeze(1) != pool
            loss = loss + _alignment(document[own] @ stored.T, near_to[own] @ near_to.T, near, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    learned = weight.detach()

    def at(share: float) -> tuple[FoldedMap, Codec]:
        mixed = torch.lerp(start, learned, share).numpy()
        return folded.ending(mixed), codes.finished(share)

    return at


def _alignment(student: Tensor, teacher: Tensor, allowed: Tensor, config: LastStage) -> Tensor:
    """Compute the weighted term that keeps the teacher's neighbourhoods, over the allowed pairs; ``(n, C)`` each."""
    term: Tensor = alignment_kl(student, teacher, config.alignment_tau, allowed)
    return config.alignment_weight * config.alignment_tau * term


def _batch(
    table: Table, qrels: Qrels | None, queries: np.ndarray, config: LastStage, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row ids of anchors ``(B,)`` and of distinct documents ``(C,)``, and each anchor's place among them."""
    if qrels is not None:
        pairs = qrels.pairs[rng.permutation(len(qrels.pairs))[: config.batch_size]]
        anchors, documents = table.query_ids(pairs[:, 0]), pairs[:, 1]
    else:
        documents = rng.permutation(table.corpus_size)[: config.batch_size]
        chosen = queries[rng.permutation(len(queries))[: config.batch_size]]
        anchors = np.concatenate([table.query_ids(chosen), documents])
    drawn = rng.permutation(table.corpus_size)[: config.candidates]
    pool = np.union1d(documents, drawn)
    own = np.searchsorted(pool, documents)
    return torch.from_numpy(anchors), torch.from_numpy(pool), torch.from_numpy(own)
