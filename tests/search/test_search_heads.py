"""FAISS heads: every kind finds, filters, deletes, can be saved, and is rebuilt when it has outgrown its structure."""

from __future__ import annotations

import numpy as np
import pytest

from search_world import clustered, compressor, naive, recall
from smec_st.data import DataError
from smec_st.search import FunnelIndex, Schedule, Step
from smec_st.search.heads import EXACT_BELOW, Head, factory, row_bytes

ROWS = EXACT_BELOW + 200
KINDS = ["flat", "flat-int8", "flat-int4", "hnsw", "hnsw-float16", "hnsw-int8", "ivf", "ivf-int8"]
TRAINED_LONG = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("flat-pq", "ivf-pq")]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS + TRAINED_LONG)
def test_every_kind_finds_filters_and_comes_back(kind, tmp_path):
    size, keep = (2, 3500) if kind.endswith("-pq") else (16, 300)  # training a codebook per two dimensions is slow
    wide = Schedule((Step(size, keep), Step(32, 10)), effort=keep)
    corpus, queries = clustered(ROWS), clustered(30, seed=1)
    even = np.arange(ROWS) % 2 == 0
    few = np.arange(ROWS) % 100 == 0
    with FunnelIndex.create(
        tmp_path / "index", compressor(), dims=(size,), head=kind, fields={"even": "bool", "few": "bool"}
    ) as index:
        index.add(corpus, fields={"even": even, "few": few})
        assert recall(index.search(queries, schedule=wide).ids, naive(corpus, queries, 10)) >= 0.95
        gone = naive(corpus, queries, 1)[:, 0]
        index.delete(np.unique(gone))
        left = np.ones(ROWS, dtype=bool)
        left[gone] = False
        for where, mask in (({}, left), ({"even": True}, left & even), ({"few": True}, left & few)):
            hits = index.search(queries, schedule=wide, where=where)
            assert mask[hits.ids].all()
            assert recall(hits.ids, naive(corpus, queries, 10, mask)) >= (1.0 if where == {"few": True} else 0.95)
        index.flush()
        before, ram = index.search(queries, schedule=wide), index.bytes()["ram"]["head"]
        assert ram == pytest.approx(ROWS * row_bytes(kind, size), rel=0.5)
    with FunnelIndex.open(tmp_path / "index") as index:
        after = index.search(queries, schedule=wide)
        assert np.array_equal(before.ids, after.ids)
        assert index.bytes()["ram"]["head"] == ram


@pytest.mark.parametrize("kind", ["flat", "hnsw", "hnsw-int8", "ivf", "ivf-int8"])
def test_every_kind_that_milvus_has(kind, tmp_path):
    corpus, queries = clustered(600), clustered(10, seed=1)
    with FunnelIndex.create(tmp_path / "index.db", compressor(), dims=(16,), head=kind) as index:
        index.add(corpus)
        found = index.search(queries, schedule=Schedule((Step(16, 200), Step(32, 10)), effort=200)).ids
    assert recall(found, naive(corpus, queries, 10)) >= 0.95


def test_a_kind_that_milvus_lacks_is_refused(tmp_path):
    with pytest.raises(DataError, match="Milvus has no head 'flat-int4'"):
        FunnelIndex.create(tmp_path / "index.db", compressor(), head="flat-int4")


def test_a_head_is_exact_while_it_is_small_and_grows_into_its_kind(tmp_path):
    corpus, queries = clustered(ROWS), clustered(10, seed=1)
    with FunnelIndex.create(tmp_path / "index", compressor(), dims=(4,), head="ivf-int8") as index:
        index.add(corpus[:1000])
        assert index._backend.reader().faiss_head.is_exact
        index.add(corpus[1000:], range(1000, ROWS))
        assert not index._backend.reader().faiss_head.is_exact
        found = index.search(queries, schedule=Schedule((Step(4, 3000), Step(32, 10)), effort=9999))
        assert recall(found.ids, naive(corpus, queries, 10)) >= 0.98
    assert factory("ivf-int8", 16, EXACT_BELOW) == "IVF105,SQ8"
    head = Head("ivf-int8", 4)
    head.built_on = 5000
    assert not head.wants_rebuild(19_999)
    assert head.wants_rebuild(20_000)


def test_a_head_that_is_read_back_must_be_of_its_size(tmp_path):
    head = Head("flat", 4)
    head.add(np.eye(4, dtype=np.float32))
    head.save(tmp_path / "head.faiss")
    with pytest.raises(DataError, match="holds vectors 4 wide, not 8"):
        Head("flat", 8).load(tmp_path / "head.faiss", 4)
    (tmp_path / "head.faiss").write_bytes(b"no index")
    with pytest.raises(DataError, match="not a readable FAISS index"):
        Head("flat", 4).load(tmp_path / "head.faiss", 4)


@pytest.mark.parametrize("kind", ["tree", "hnsw-int3", "hnsw-pq", ""])
def test_unknown_kinds_are_refused(kind):
    with pytest.raises(DataError, match="unknown head|no sound HNSW"):
        Head(kind, 4)
