"""Counterfactual queries: what they are, which queries they replace, and where there are none."""

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
    make_loss,
    make_model,
    memory_of,
    naive_grades,
    naive_terms,
    qrels,
    relevance,
    run,
    stage_of,
    table,
)
from smec_st.data import Qrels, VectorTable
from smec_st.functional import linear_link, unit
from smec_st.losses.relevance import Relevance
from smec_st.losses.shadows import Shadows

STEP = (1, 2)


def query_rows(table):
    return torch.from_numpy(table.query_ids(np.arange(QUERIES)))


def places_of(pool_ids, documents):
    return torch.stack([(pool_ids == document).nonzero().squeeze() for document in documents])


def shadowed_loss(table, relevance, share, **settings):
    settings = {"alignment_weight": 1.0, "random_rows": 100, "shadow_share": share, **settings}
    loss = make_loss(make_model(), table, relevance, memory_of(table, range(DOCUMENTS)), **settings)
    loss.begin_step(*STEP)
    return loss


# -- what they are ----------------------------------------------------------------------------------------------------


def test_without_labels_a_query_moves_as_it_stands_from_its_nearest_document(table):
    shadows, ids = Shadows(table, None, seed=0), query_rows(table)
    queries, pool = table[ids], table[torch.arange(DOCUMENTS)]
    found, stood_by, _ = shadows(queries, ids, pool, None, STEP)
    for query, shadow, place in zip(queries, found, stood_by, strict=True):
        nearest = pool[int((pool @ query).argmax())]
        torch.testing.assert_close(shadow, unit(pool[place] + query - nearest))
    assert len(set(stood_by.tolist())) > QUERIES / 2, "spread over the pool"


def test_with_labels_a_query_moves_by_what_its_document_predicts(table, relevance):
    shadows, ids = Shadows(table, relevance, seed=0), query_rows(table)
    queries, pool = table[ids], table[torch.arange(DOCUMENTS)]
    own = torch.arange(QUERIES)  # query i asks for document i
    found, stood_by, _ = shadows(queries, ids, pool, own, STEP)
    judged = [(q, d) for q, grades in JUDGED.items() for d, grade in grades.items() if grade > 0]
    asked, answers = (table[torch.tensor(rows)] for rows in zip(*((q + DOCUMENTS, d) for q, d in judged), strict=True))
    link = linear_link(answers, asked)
    for query, shadow, place, document in zip(queries, found, stood_by, own, strict=True):
        torch.testing.assert_close(shadow, unit(query + link @ (pool[place] - pool[document])), atol=1e-5, rtol=0)


def test_they_depend_on_seed_stage_step_and_query_alone(table):
    ids, pool = query_rows(table), table[torch.arange(DOCUMENTS)]

    def drawn(rows=slice(None), seed=0, step=STEP):
        return Shadows(table, None, seed)(table[ids[rows]], ids[rows], pool, None, step)

    whole = drawn()
    assert all(torch.equal(part, column[3:5]) for part, column in zip(drawn(slice(3, 5)), whole, strict=True))
    assert all(torch.equal(part, column) for part, column in zip(drawn(), whole, strict=True))
    for other in (drawn(seed=1), drawn(step=(1, 3)), drawn(step=(2, 2))):
        assert not any(torch.equal(part, column) for part, column in zip(other, whole, strict=True))


def test_places_and_chances_are_spread_evenly():
    rng = np.random.default_rng(0)
    table = VectorTable(rng.normal(size=(20, 4)), rng.normal(size=(20_000, 4)))
    ids = torch.arange(20, len(table))
    _, stood_by, chance = Shadows(table, None, seed=3)(table[ids], ids, table[torch.arange(20)], None, (0, 5))
    assert np.bincount(stood_by.numpy(), minlength=20) == pytest.approx(1000, rel=0.15)
    assert np.histogram(chance.numpy(), bins=10, range=(0, 1))[0] == pytest.approx(2000, rel=0.15)
    at_low, at_high = (stood_by[part].double().mean().item() for part in (chance < 0.5, chance >= 0.5))
    assert at_low == pytest.approx(at_high, abs=0.4), "which document stands in says nothing about the chance"


def test_of_many_training_pairs_a_sample_says_how_queries_follow(table, relevance, monkeypatch):
    pairs = relevance.pairs
    assert pairs.tolist() == sorted([q + DOCUMENTS, d] for q, of in JUDGED.items() for d, g in of.items() if g > 0)
    whole = Shadows(table, relevance, seed=0).link
    assert torch.equal(whole, linear_link(table[pairs[:, 1]], table[pairs[:, 0]]))
    monkeypatch.setattr("smec_st.losses.shadows.MOST_LINKED", len(pairs) // 2)
    one, again = (Shadows(table, relevance, seed=0).link for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, whole, atol=0.01)


# -- in the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_the_share_of_queries_that_they_replace_asks_for_one_document_each(table, relevance, judged, share):
    loss = shadowed_loss(table, relevance if judged else None, share, sharpening=0.0)
    columns, labels = batch_of(table, *(BATCH if judged else BATCH[:1]))
    terms, pool_ids = run(loss, columns, labels)
    queries, ids = columns[0]["sentence_embedding"], labels[:, 0]
    own = places_of(pool_ids, labels[:, 1]) if judged else None
    shadows, stood_by, chance = Shadows(table, loss.relevance, 0)(queries, ids, table[pool_ids], own, STEP)
    grades = naive_grades(ids, pool_ids)
    for row in range(len(ids)):
        if chance[row] < share:
            grades[row] = torch.eye(len(pool_ids))[stood_by[row]]
    rows = torch.where((chance < share)[:, None], shadows, queries)
    expected = naive_terms(loss, table, labels, pool_ids, queries=rows, grades=grades)
    assert terms.keys() == expected.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_over_many_steps_they_replace_their_share_of_the_queries(table):
    loss = shadowed_loss(table, None, 0.3)
    columns, labels = batch_of(table, range(QUERIES))
    queries, seen = columns[0]["sentence_embedding"], []
    loss.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]["sentence_embedding"][:QUERIES]))
    for step in range(200):
        loss.begin_step(0, step)
        loss(columns, labels)
    replaced = [float((rows != queries).any(dim=1).float().mean()) for rows in seen]
    assert np.mean(replaced) == pytest.approx(0.3, abs=0.04)


def test_none_stand_in_the_adapt_stage(table, relevance):
    columns, labels = batch_of(table, *BATCH)
    terms = []
    for share in (0.0, 0.9):
        loss = shadowed_loss(table, relevance, share)
        loss.begin_stage(stage_of(size=WIDTH, phase="adapt"))
        terms.append(loss(columns, labels))
    assert list(terms[0]) == ["rank"]
    assert torch.equal(terms[0]["rank"], terms[1]["rank"])


@pytest.mark.parametrize("judged", [True, False])
def test_queries_that_are_documents_have_none(rng, judged):
    vectors = rng.normal(size=(DOCUMENTS, WIDTH))
    own = np.r_[np.arange(QUERIES), -1]  # and one that nobody trains on
    table = VectorTable(vectors, np.vstack([vectors[:QUERIES], -vectors[:1]]), own)
    relevance = Relevance(Qrels.from_dict(JUDGED, range(QUERIES + 1), range(DOCUMENTS)), table) if judged else None
    columns, labels = batch_of(table, *BATCH)
    plain, shadowed = (shadowed_loss(table, relevance, share)(columns, labels) for share in (0, 0.5))
    assert all(torch.equal(plain[name], shadowed[name]) for name in plain)


def test_documents_that_ask_have_none(rng):
    table = VectorTable(rng.normal(size=(DOCUMENTS, WIDTH)), None)
    rows = torch.arange(4)
    columns, labels = [{"sentence_embedding": table[rows]}], torch.stack([rows, torch.full_like(rows, -1)], dim=1)
    plain, shadowed = (shadowed_loss(table, None, share)(columns, labels)["alignment"] for share in (0.0, 0.5))
    assert torch.equal(plain, shadowed)
    assert not Shadows(None, None, 0).are_cast
