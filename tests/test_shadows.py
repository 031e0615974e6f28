"""Shadows of queries: where they fall, what they count for, and who casts none."""

# ruff: noqa: F811 -- fixtures of the other file

import numpy as np
import pytest
import torch

from loss_world import (  # noqa: F401
    BATCH,
    DOCUMENTS,
    JUDGED,
    QUERIES,
    WIDTH,
    batch_of,
    make_model,
    memory_of,
    naive_grades,
    qrels,
    relevance,
    run,
    table,
)
from smec_st.data import Qrels, VectorTable
from smec_st.functional import alignment_kl, contrastive_loss, linear_link, unit
from smec_st.losses import Relevance, SMECLoss


def loss_with_shadows(table, share, **more):
    settings = {"rank_weight": 0, "alignment_weight": 1.0, "random_rows": 100, **more}
    return SMECLoss(make_model(), table, None, memory_of(table, range(DOCUMENTS)), shadow_share=share, **settings)


def test_shadows_are_documents_moved_as_queries_stand_from_their_nearest(table):
    loss = loss_with_shadows(table, 0.5)
    loss.begin_step(2, 7)
    ids = torch.from_numpy(table.query_ids(np.arange(QUERIES)))
    queries, pool = table[ids], table[torch.arange(DOCUMENTS)]
    shadows, stood_by = loss._shadows(queries, ids, pool)
    bases = set()
    for query, shadow in zip(queries, shadows, strict=True):
        nearest = pool[int((pool @ query).argmax())]
        candidates = unit(pool + query - nearest)
        away = (candidates - shadow).norm(dim=1)
        assert away.min() < 1e-6
        bases.add(int(away.argmin()))
    assert len(bases) == len(set(stood_by.tolist()))
    assert len(bases) > QUERIES / 2  # spread over the pool
    assert torch.equal(loss._shadows(queries[3:5], ids[3:5], pool)[0], shadows[3:5])  # whoever else is in the batch
    loss.begin_step(2, 8)
    assert not torch.equal(loss._shadows(queries, ids, pool)[0], shadows)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_shadows_take_their_share_of_the_alignment(table, share):
    loss = loss_with_shadows(table, share)
    loss.begin_step(0, 3)
    columns, labels = batch_of(table, BATCH[0])
    ids, queries, pool = labels[:, 0], columns[0]["sentence_embedding"], table[torch.arange(DOCUMENTS)]

    def drift(rows):
        small = [unit(loss.model({"sentence_embedding": x})["sentence_embedding"]) for x in (rows, pool)]
        return loss.alignment_tau * alignment_kl(small[0] @ small[1].T, rows @ pool.T, loss.alignment_tau)

    shadows = loss_with_shadows(table, 0.5)
    shadows.begin_step(0, 3)
    expected = (1 - share) * drift(queries) + share * drift(shadows._shadows(queries, ids, pool)[0])
    assert loss(columns, labels)["alignment"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_with_labels_shadows_stand_by_one_document_as_queries_by_their_own(table, relevance, share):
    loss = SMECLoss(make_model(), table, relevance, memory_of(table, range(DOCUMENTS)), shadow_share=share)
    loss.begin_step(1, 2)
    columns, labels = batch_of(table, *BATCH)
    terms, candidates = run(loss, columns, labels)
    pool_ids = candidates if share == 0 else candidates[: -len(labels)]
    own = torch.stack([(pool_ids == document).nonzero().squeeze() for document in labels[:, 1]])
    pool, queries = table[pool_ids], columns[0]["sentence_embedding"]
    drawing = SMECLoss(make_model(), table, relevance, shadow_share=0.5)
    drawing.begin_step(1, 2)
    shadows, stood_by = drawing._shadows(queries, labels[:, 0], pool, own)
    judged = [(q, d) for q, grades in JUDGED.items() for d, grade in grades.items() if grade > 0]
    asked, found = (table[torch.tensor(rows)] for rows in zip(*((q + DOCUMENTS, d) for q, d in judged), strict=True))
    link = linear_link(found, asked)
    moved = [q + link @ (pool[j] - pool[i]) for q, i, j in zip(queries, own, stood_by, strict=True)]
    assert torch.allclose(shadows, unit(torch.stack(moved)), atol=1e-5)
    only = torch.eye(len(pool))[stood_by]

    def rank(rows, grades):
        small = [unit(loss.model({"sentence_embedding": x})["sentence_embedding"]) for x in (rows, pool)]
        return contrastive_loss(small[0] @ small[1].T, grades, loss.tau)

    expected = (1 - share) * rank(queries, naive_grades(labels[:, 0], pool_ids)) + share * rank(shadows, only)
    assert terms["rank"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_of_many_training_pairs_a_sample_says_how_queries_follow(table, relevance, monkeypatch):
    pairs = relevance.pairs
    assert pairs.tolist() == sorted([q + DOCUMENTS, d] for q, of in JUDGED.items() for d, g in of.items() if g > 0)
    whole = SMECLoss(make_model(), table, relevance)._shadow_of.link
    assert torch.equal(whole, linear_link(table[pairs[:, 1]], table[pairs[:, 0]]))
    monkeypatch.setattr("smec_st.losses.shadows.MOST_LINKED", len(pairs) // 2)
    one, again = (SMECLoss(make_model(), table, relevance)._shadow_of.link for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, whole, atol=0.01)


def test_queries_that_are_documents_cast_no_shadow(rng):
    vectors = rng.normal(size=(DOCUMENTS, WIDTH))
    own = np.r_[np.arange(QUERIES), -1]  # and one that nobody trains on
    table = VectorTable(vectors, np.vstack([vectors[:QUERIES], -vectors[:1]]), own)
    relevance = Relevance(Qrels.from_dict(JUDGED, range(QUERIES + 1), range(DOCUMENTS)), table)
    columns, labels = batch_of(table, *BATCH)
    for judged in (None, relevance):
        losses = [SMECLoss(make_model(), table, judged, memory_of(table, range(20)), shadow_share=s) for s in (0, 0.5)]
        plain, shadowed = (loss(columns, labels) for loss in losses)
        assert all(torch.equal(plain[name], shadowed[name]) for name in plain)


def test_documents_that_ask_cast_no_shadow(rng):
    table = VectorTable(rng.normal(size=(DOCUMENTS, WIDTH)), None)
    rows = torch.arange(4)
    columns, labels = [{"sentence_embedding": table[rows]}], torch.stack([rows, torch.full_like(rows, -1)], dim=1)
    plain, shadowed = (loss_with_shadows(table, share)(columns, labels)["alignment"] for share in (0.0, 0.5))
    assert torch.equal(plain, shadowed)
