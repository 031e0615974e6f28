"""Several collections are joined into one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from smec_st.data import Collection, DataError, Qrels, join_collections


def made(name, documents, queries, seed, width=8, own=False):
    rng = np.random.default_rng(seed)
    judged = {
        split: Qrels(rows, rng.integers(0, documents, len(rows)), np.ones(len(rows)))
        for split, rows in (("train", np.arange(queries // 2)), ("test", np.arange(queries // 2, queries)))
    }
    return Collection(
        name,
        rng.normal(size=(documents, width)).astype(np.float32),
        rng.normal(size=(queries, width)).astype(np.float32),
        [f"d{i}" for i in range(documents)],
        [f"q{i}" for i in range(queries)],
        judged,
        np.arange(queries) if own else np.empty(0, dtype=np.int64),
    )


def test_joined_judgements_name_the_same_vectors():
    parts = [made("a", 20, 6, 0), made("b", 15, 8, 1, own=True), made("c", 5, 4, 2)]
    parts[2] = dataclasses.replace(parts[2], qrels={"test": parts[2].qrels["test"]})
    joined = join_collections(parts)
    assert joined.name == "a+b+c"
    assert sorted(joined.qrels) == ["test", "train"]
    by_name = {part.name: part for part in parts}
    for split, qrels in joined.qrels.items():
        assert len(qrels) == sum(len(part.qrels.get(split, ())) for part in parts)
        for query, document in qrels.pairs.tolist():
            name, query_id = joined.query_ids[query].split("/")
            other, document_id = joined.corpus_ids[document].split("/")
            part = by_name[name]
            assert name == other
            row, column = part.query_ids.index(query_id), part.corpus_ids.index(document_id)
            assert [row, column] in part.qrels[split].pairs.tolist()
            assert np.array_equal(joined.queries[query], part.queries[row])
            assert np.array_equal(joined.corpus[document], part.corpus[column])
    own = np.flatnonzero(joined.own_document >= 0)
    assert [joined.query_ids[row] for row in own] == [f"b/q{i}" for i in range(8)]
    assert [joined.corpus_ids[row] for row in joined.own_document[own]] == [f"b/d{i}" for i in range(8)]


def test_what_must_not_be_mixed_is_refused():
    one, other = made("a", 9, 2, 0), made("b", 9, 2, 1)
    with pytest.raises(DataError, match="names that differ, got a, a"):
        join_collections([one, one])
    with pytest.raises(DataError, match="these are wide: a 8, c 4"):
        join_collections([one, made("c", 9, 2, 1, width=4)])
    spaces = [dataclasses.replace(part, backbone={"model": name}) for part, name in ((one, "x"), (other, "y"))]
    with pytest.raises(DataError, match="b: another embedding space: the model is 'y', but that of a is 'x'"):
        join_collections(spaces)
    assert join_collections([spaces[0], other]).backbone == {"model": "x"}
