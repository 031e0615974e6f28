"""Labels that are classes: known by what they say, completed where they say it in part, and left alone elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from smec_st import Compressor, classes, fitting
from smec_st.classes import are_many, complete_classes, labels_are_classes
from smec_st.config import CLASS_DEFAULTS
from smec_st.data import Qrels, VectorTable

DOCUMENTS, QUERIES, KINDS = 120, 300, 6


def pairs(relevant, queries=None):
    """Judgements of a matrix, ``(q, N)`` bool."""
    rows, documents = np.nonzero(relevant)
    return Qrels(rows if queries is None else queries[rows], documents, np.ones(len(rows)))


@pytest.fixture
def table(rng):
    """Documents by kind: eight directions, the first six of which say the kind of document and of query."""
    kinds = np.arange(DOCUMENTS) % KINDS, np.arange(QUERIES) % KINDS
    sides = (np.eye(8)[kind] + 0.3 * rng.normal(size=(len(kind), 8)) for kind in kinds)
    return VectorTable(*(side.astype(np.float32) for side in sides))


@pytest.fixture
def whole():
    """The documents of each query's kind, ``(q, N)`` bool."""
    return np.arange(QUERIES)[:, None] % KINDS == np.arange(DOCUMENTS)[None] % KINDS


def sets(qrels):
    return set(map(tuple, qrels.pairs.tolist()))


def test_classes_are_known_by_queries_that_are_documents_or_by_sets_that_repeat(rng):
    own = np.arange(40)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    same = own[:, None] % 4 == own[None, :] % 4
    others_of_the_class = pairs(same & (own[:, None] != own[None, :]))
    documents_ask, others_ask = VectorTable(vectors, vectors, own), VectorTable(vectors, vectors)
    assert labels_are_classes(documents_ask, others_of_the_class)
    assert not labels_are_classes(documents_ask, Qrels(own, (own + 4) % 40, np.ones(40)))  # duplicates, one each
    assert labels_are_classes(others_ask, pairs(same))
    assert not labels_are_classes(others_ask, pairs(own[:, None] % 10 == own[None, :] % 10))  # four each
    assert not labels_are_classes(others_ask, others_of_the_class)  # each query has documents of its own
    assert not labels_are_classes(documents_ask, None)


def test_classes_that_are_named_in_part_are_completed(table, whole, rng):
    part = pairs(whole & (rng.random(whole.shape) < 0.5))
    assert not labels_are_classes(table, part)
    completed = complete_classes(table, part)
    assert sets(completed) == sets(pairs(whole))
    assert labels_are_classes(table, completed)


def test_a_query_that_is_a_document_does_not_get_itself(rng):
    own = np.arange(DOCUMENTS)
    vectors = rng.normal(size=(DOCUMENTS, 8)).astype(np.float32)
    others = (own[:, None] % KINDS == own[None] % KINDS) & (own[:, None] != own[None])
    part = pairs(others & (rng.random(others.shape) < 0.8))
    assert sets(complete_classes(VectorTable(vectors, vectors, own), part)) == sets(pairs(others))


def test_what_is_judged_irrelevant_stays_so(table, whole, rng):
    part = pairs(whole & (rng.random(whole.shape) < 0.5))
    query, document = next(pair for pair in sorted(sets(pairs(whole))) if pair not in sets(part))
    judged = Qrels.joined([part, Qrels(np.array([query]), np.array([document]), np.zeros(1))])
    assert sets(complete_classes(table, judged)) == sets(pairs(whole)) - {(query, document)}


def test_likely_pairs_are_those_of_plain_loops(rng):
    relevant = rng.random((15, 25)) < 0.3
    grades = np.where(relevant, rng.integers(1, 3, relevant.shape), np.where(rng.random(relevant.shape) < 0.1, 0, -1))
    rows, documents = np.nonzero(grades >= 0)
    found = classes._likely(Qrels(rows * 2, documents, grades[rows, documents].astype(np.float32)))
    wanted = set()
    for query in range(15):
        votes = np.zeros(25)
        for other in set(range(15)) - {query}:
            votes += (relevant[query] & relevant[other]).sum() * relevant[other]
        usual = votes[relevant[query]].mean()
        wanted |= {(2 * query, d) for d in range(25) if grades[query, d] < 0 and votes[d] >= max(usual / 2, 1e-9)}
    assert set(zip(*(column.tolist() for column in found), strict=True)) == wanted
    assert wanted


def test_queries_that_ask_in_parts_and_some_of_the_others_find_the_same(table, whole, rng, monkeypatch):
    part = pairs(whole & (rng.random(whole.shape) < 0.7))
    monkeypatch.setattr(classes, "CHUNK", 70)
    assert sets(complete_classes(table, part)) == sets(pairs(whole))
    monkeypatch.setattr(classes, "VOICES", 150)
    assert sets(complete_classes(table, part)) == sets(pairs(whole))


@pytest.mark.parametrize("kind", ["whole classes", "chance", "few"])
def test_other_judgements_stay_as_they_are(table, whole, rng, kind):
    relevant = {
        "whole classes": whole,
        "chance": rng.random(whole.shape) < 0.1,
        "few": np.arange(QUERIES)[:, None] % DOCUMENTS == np.arange(DOCUMENTS)[None],
    }[kind]
    qrels = pairs(relevant)
    assert are_many(qrels) == (kind != "few")
    assert complete_classes(table, qrels) is qrels


@pytest.fixture
def fits(monkeypatch):
    """Training and held-out judgements of each fit, by its title."""
    seen = {}
    real = fitting.fit_stages

    def watched(*args, title="", **kwargs):
        seen[title] = args[1:3]
        return real(*args, title=title, **kwargs)

    monkeypatch.setattr(fitting, "fit_stages", watched)
    return seen


def fit(table, train, **options):
    queries = np.stack([table[row] for row in range(table.corpus_size, len(table))])
    quick = {"steps": 2, "selection_steps": 1, "batch_size": 32, "folds": 2}
    return Compressor.fit(table.documents(), queries, train, (4, 2), **quick, **options)


@pytest.mark.parametrize("dev", [True, False])
def test_a_fit_trains_on_completed_classes_and_says_so(table, whole, rng, fits, dev):
    part = pairs(whole & (rng.random(whole.shape) < 0.5))
    train, held_out = (part.of_queries(range(200)), part.of_queries(range(200, 300))) if dev else (part, None)
    compressor = fit(table, train, dev_qrels=held_out)
    trained, choosing = fits[""]
    assert sets(trained) == {pair for pair in sets(pairs(whole)) if not dev or pair[0] < 200}
    assert "of the classes they are about" in compressor.info["data"]["note"]
    assert {name: compressor.info["settings"][name] for name in CLASS_DEFAULTS} == CLASS_DEFAULTS
    if dev:
        assert sets(choosing) == sets(held_out), "what chooses is as it was judged"


def test_few_queries_choose_by_what_they_name_also_where_their_classes_are_completed(table, whole, rng, fits):
    part = pairs(whole & (rng.random(whole.shape) < 0.8)).of_queries(range(100))
    fit(table, part, unlabelled_queries=np.arange(QUERIES))
    trained, held_out = fits["fold 1/2"]
    rows = set(range(100)) - set(held_out.query_rows.tolist())
    assert sets(trained) == {pair for pair in sets(pairs(whole)) if pair[0] in rows}
    assert sets(fits["without labels"][1]) == sets(part)
    assert set().union(*(sets(fits[f"fold {number}/2"][1]) for number in (1, 2))) == sets(part)
