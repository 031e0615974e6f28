"""The last stage: train map and codes together, through the rounding.

The map's last layer and what the code stands for (centroids, ranges) are moved so that each float query, and each
document, has the same neighbours among *decoded* documents as in the space that is to be kept. The rounding has no
useful gradient, so the step passes straight through it (Bengio et al., 2013): the map's gradient is taken as if the
decoded document were the mapped one, while the centroids get their own.

Where vectors fill a narrow cone their similarities are stretched first (:func:`~smec_st.functional.narrowness`), as
they were when the map was trained. Without this the last stage undoes what the map has learned: on XQuAD-R with e5
the share of neighbours kept in 24 bytes falls from .77 to .63, and with it rises to .82.

Training product codes together with a map follows JPQ (Zhan et al., CIKM 2021) and RepCONC (Zhan et al., WSDM 2022).
They rank judged documents. Here a map that has learned from labels is the teacher instead: it knows the neighbours of
all documents, also of those without a label. At 12 bytes the share of the ten nearest that are kept rises from .62 to
.64 on SciFact and from .77 to .80 on XQuAD-R.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smec_st.data import DataError, Table, places_among
from smec_st.functional import alignment_kl, narrowness, unit
from smec_st.maps import FoldedMap
from smec_st.quantization.codecs import Codec
from smec_st.quantization.rounding import Rounding
from smec_st.quantization.starts import sample_rows
from smec_st.system.matmul import fast_matmul

#: Documents, and queries, that batches are drawn from, at most. They are mapped once.
TRAINING_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class LastStage:
    """Settings of the last stage.

    Args:
        steps: Steps; 0 for none.
        batch_size: Documents per step, and at most as many queries.
        candidates: Documents that these are compared with.
        learning_rate: Learning rate of the map (Adam, with a cosine schedule).
        code_learning_rate: Learning rate of centroids and ranges.
        tau: Temperature of the neighbourhoods.
        seed: Random seed.
    """

    steps: int = 80
    batch_size: int = 256
    candidates: int = 2048
    learning_rate: float = 3e-4
    code_learning_rate: float = 1e-3
    tau: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size - 1, self.candidates - 1) < 0:
            raise DataError("`steps` must be 0 or more, `batch_size` and `candidates` 1 or more.")


@fast_matmul()
def train_codes(
    table: Table,
    folded: FoldedMap,
    codec: Codec,
    queries: np.ndarray,
    config: LastStage,
    teacher: FoldedMap | None = None,
) -> tuple[FoldedMap, Codec]:
    """Train the last layer of a map together with a codec.

    Args:
        table: Corpus and queries.
        folded: Map to start from; any rotation of the codec's is already part of it.
        codec: Codec to start from, without rotation.
        queries: Query rows to train on, ``(q,)``; their judgements are not read.
        config: Settings.
        teacher: The map whose neighbourhoods are kept; None for those of the table's own vectors.

    Returns:
        The trained map and codec.
    """
    rng = np.random.default_rng([config.seed, folded.out_dim, codec.bytes])
    weight = torch.nn.Parameter(torch.from_numpy(folded.layers[-1].weight).clone())
    codes = Rounding(codec)
    of_map = {"params": [weight], "lr": config.learning_rate}
    of_codes = {"params": [*codes.parameters()], "lr": config.code_learning_rate}
    optimizer = torch.optim.Adam([of_map, of_codes])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(config.steps, 1))
    documents = sample_rows(table.corpus_size, config.seed, TRAINING_ROWS)
    asked = queries[sample_rows(len(queries), config.seed, TRAINING_ROWS)]
    known = np.concatenate([documents, table.query_ids(asked)])
    own = torch.from_numpy(places_among(documents, table.own(torch.from_numpy(known)).numpy()))
    vectors = table[torch.from_numpy(known)]
    taught = vectors if teacher is None else torch.from_numpy(teacher.compress(vectors.numpy()))
    if len(folded.layers) > 1:
        before = folded.ending(np.eye(folded.layers[-1].weight.shape[1]))
        vectors = torch.from_numpy(before(vectors.numpy()))
    for _ in range(config.steps):
        anchors, pool = _batch(len(documents), len(known), config, rng)
        asking, document = unit(vectors[anchors] @ weight.T), unit(vectors[pool] @ weight.T)
        stored = unit(codes.decoded(document))
        kept = taught[anchors] @ taught[pool].T / narrowness(taught[pool])
        other = pool != own[anchors].unsqueeze(1)
        loss = alignment_kl(asking @ stored.T, kept, config.tau, other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return folded.ending(weight.detach().numpy()), codes.finished()


def _batch(documents: int, known: int, config: LastStage, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw documents and queries that ask, ``(A,)``, and distinct documents that they are compared with, ``(C,)``.

    The first ``documents`` of the ``known`` rows are documents, the others queries.
    """
    shown = rng.permutation(documents)[: config.batch_size]
    queries = documents + rng.permutation(known - documents)[: config.batch_size]
    pool = np.union1d(shown, rng.permutation(documents)[: config.candidates])
    return torch.from_numpy(np.concatenate([queries, shown])), torch.from_numpy(pool)
