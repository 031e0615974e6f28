"""The teacher: full width, moved a little towards what labels say, before anything is compressed."""

from __future__ import annotations

import numpy as np
import torch

from smec_st.baselines.training import Batches
from smec_st.data import Qrels, VectorTable
from smec_st.functional import NEVER, contrastive_loss, unit
from smec_st.guard import STRENGTHS
from smec_st.losses import Relevance
from smec_st.matmul import fast_matmul
from smec_st.modules import ResidualAdapter
from smec_st.quiet import quiet_libraries

STEPS = 100
BATCH_SIZE = 128
TAU = 0.05
RATE = 0.2  # of Adam, over the width: the first step moves no vector of length 1 by more


@fast_matmul()
def train_teacher(table: VectorTable, qrels: Qrels, seed: int = 0) -> ResidualAdapter:
    """A map of the full width onto itself that begins at the identity and takes a few small steps towards the labels.

    :func:`~smec_st.functional.contrastive_loss` over the relevant documents of the batch alone: its first steps
    correct what is wrong with all queries and documents alike, and there they end. SMEC's unsupervised term takes the
    backbone's similarities for the right ones; where these are not, stages that begin from the moved vectors'
    principal axes, and keep the moved neighbourhoods, need not learn so again at every size.

    Args:
        table: Corpus and queries.
        qrels: Training judgements, at least one of them relevant.
        seed: Of the batches.

    Returns:
        An adapter ``(D, D)``, whose ``strength`` walks from the identity to the result.
    """
    adapter, relevance = ResidualAdapter(table.width, table.width), Relevance(qrels, table)
    optimizer = torch.optim.Adam(adapter.residual.parameters(), lr=RATE / table.width)
    pairs = qrels.pairs
    batches = Batches(len(pairs), BATCH_SIZE, seed)
    for _ in range(STEPS):
        chosen = pairs[batches.next()]
        queries = torch.from_numpy(table.query_ids(np.unique(chosen[:, 0])))
        documents = torch.from_numpy(np.unique(chosen[:, 1]))
        weight = adapter.linear_map()
        similarity = unit(table[queries] @ weight.T) @ unit(table[documents] @ weight.T).T
        similarity = similarity.masked_fill(documents == table.own(queries).unsqueeze(1), NEVER)
        optimizer.zero_grad()
        contrastive_loss(similarity, relevance(queries, documents), TAU).backward()
        optimizer.step()
    adapter.requires_grad_(False)
    return adapter


def moved_by(table: VectorTable, qrels: Qrels, strength: float, seed: int = 0) -> torch.Tensor:
    """The teacher's map ``(D, D)`` at this strength; see :func:`train_teacher`."""
    adapter = train_teacher(table, qrels, seed)
    adapter.strength.fill_(strength)
    return adapter.linear_map().detach()


def teacher_scores(table: VectorTable, train: Qrels, held_out: Qrels, seed: int = 0) -> dict[float, np.ndarray]:
    """nDCG@10 at full width of the queries held out, by the teacher's strength, ``(q,)`` each.

    Args:
        table: Corpus and queries.
        train: What it learns from.
        held_out: Judgements of other queries.
        seed: Of the batches.
    """
    from sentence_transformers import SentenceTransformer

    from smec_st.evaluation.evaluator import HeldOutEvaluator
    from smec_st.modules import EmbeddingInput

    adapter, evaluator = train_teacher(table, train, seed), HeldOutEvaluator(table, held_out)
    with quiet_libraries():
        model = SentenceTransformer(modules=[EmbeddingInput(table.width), adapter], device="cpu")
    scores = {}
    for strength in STRENGTHS:
        adapter.strength.fill_(strength)
        scores[strength] = evaluator.per_query(model)
    return scores
