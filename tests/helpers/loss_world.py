"""A small table with judgements, one stage to train, and the loss by a plain computation."""

import numpy as np
import pytest
import torch
from torch import nn

from smec_st.data import Qrels, VectorTable
from smec_st.functional import alignment_kl, alignment_l1, contrastive_loss, rank_loss, spread, unit
from smec_st.losses.memory import SelectableCrossBatchMemory
from smec_st.losses.relevance import Relevance
from smec_st.losses.settings import LossSettings
from smec_st.losses.smec import SMECLoss
from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter
from smec_st.stages import Stage

WIDTH, DOCUMENTS, QUERIES = 16, 40, 12
JUDGED = {q: {q: 2, (q + 5) % DOCUMENTS: 1, q + 20: 0} for q in range(QUERIES)}
BATCH = ([3, 7, 0, 8], [3, 12, 5, 8])  # queries and their documents; 8 is relevant to queries 3 and 8
REPEATS = ([3, 8, 1], [8, 8, 1])  # one document for two queries


@pytest.fixture
def table(rng):
    return VectorTable(rng.normal(size=(DOCUMENTS, WIDTH)), rng.normal(size=(QUERIES, WIDTH)))


@pytest.fixture
def qrels():
    return Qrels.from_dict(JUDGED, range(QUERIES), range(DOCUMENTS))


@pytest.fixture
def relevance(qrels, table):
    return Relevance(qrels, table)


def make_model(out_dim=8, keep=5, seed=0):
    """One stage with random learned weights, its selection frozen."""
    generator = torch.Generator().manual_seed(seed)
    adapter = ResidualAdapter(WIDTH, out_dim, writes="candidate_embedding")
    with torch.no_grad():
        adapter.residual.weight.copy_(torch.randn(out_dim, WIDTH, generator=generator) / 4)
    selection = AdaptiveDimensionSelection(out_dim, keep, reads="candidate_embedding")
    selection.freeze()
    return nn.Sequential(EmbeddingInput(WIDTH), adapter, selection)


def make_loss(model, table=None, relevance=None, memory=None, **settings):
    """A loss with these settings, and no counterfactual queries unless they are asked for."""
    return SMECLoss(model, table, relevance, memory, LossSettings(**{"shadow_share": 0.0, **settings}))


def stage_of(index=0, size=5, phase="compress"):
    return Stage(index=index, order="grow", phase=phase, in_dim=WIDTH, out_dim=size)


def memory_of(table, rows, capacity=None):
    memory = SelectableCrossBatchMemory(WIDTH, capacity or len(rows))
    rows = torch.tensor(list(rows), dtype=torch.int64)
    memory.push(table[rows], rows)
    return memory


def batch_of(table, queries, documents=None):
    """The columns and labels that the collator makes; without documents each query is alone."""
    ids = torch.from_numpy(table.query_ids(np.array(queries)))
    if documents is None:
        return [{"sentence_embedding": table[ids]}], torch.stack([ids, torch.full_like(ids, -1)], dim=1)
    rows = torch.tensor(documents)
    return [{"sentence_embedding": table[i]} for i in (ids, rows)], torch.stack([ids, rows], dim=1)


def run(loss, columns, labels):
    """The terms, and the row ids of the candidates that the model was given."""
    seen = []
    hook = loss.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]["sentence_embedding"]))
    terms = loss(columns, labels)
    hook.remove()
    table = loss._pool.table
    return terms, torch.cdist(seen[0][len(labels) :], table[torch.arange(len(table))]).argmin(dim=1)


def naive_grades(anchor_ids, candidate_ids):
    rows = [[JUDGED.get(a - DOCUMENTS, {}).get(c, 0) for c in candidate_ids.tolist()] for a in anchor_ids.tolist()]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(anchor_ids), len(candidate_ids))


def nearest(teacher, mask, k):
    chosen = torch.zeros_like(mask)
    for row in range(len(teacher)):
        allowed = mask[row].nonzero().flatten().tolist()
        chosen[row, sorted(allowed, key=lambda column: -teacher[row, column].item())[:k]] = True
    return chosen


def naive_terms(loss, table, labels, candidate_ids, sharper=1.0, queries=None, grades=None):
    """What the loss must be for these candidates, at weights 1, in the order of its formula.

    ``queries`` and ``grades`` stand in for the anchors' vectors and for what is judged of them.
    """

    def mapped(vectors):
        whole = loss.model({"sentence_embedding": vectors})["sentence_embedding"]
        return unit(whole[:, : loss._sizes[-1]] if loss._sizes else whole)

    def drift(rows, vectors):
        student, teacher = mapped(vectors) @ mapped(pool).T, vectors @ pool.T
        others = table.own(rows).unsqueeze(1) != candidate_ids
        if settings.alignment == "kl":
            if loss.relevance is None:
                teacher = sharper * teacher / min(spread(pool).item() / 0.8, 1)
            return settings.alignment_tau * alignment_kl(student, teacher, settings.alignment_tau, others)
        return alignment_l1(student, teacher, nearest(teacher, others, settings.top_k))

    anchors, documents = labels.T
    settings, pool = loss.settings, table[candidate_ids]
    queries = table[anchors] if queries is None else queries
    drawn = candidate_ids[loss._documents(len(candidate_ids), anchors)]
    alignment = drift(anchors, queries) + (drift(drawn, table[drawn]) if len(drawn) else 0.0)
    if (documents < 0).any():
        return {"alignment": alignment}
    similarity = mapped(queries) @ mapped(pool).T
    grades = naive_grades(anchors, candidate_ids) if grades is None else grades
    similarity[table.own(anchors).unsqueeze(1) == candidate_ids] = -1e9
    if settings.rank == "pairwise":
        return {"rank": rank_loss(similarity, grades), "alignment": alignment}
    return {"rank": contrastive_loss(similarity, grades, settings.tau), "alignment": alignment}
