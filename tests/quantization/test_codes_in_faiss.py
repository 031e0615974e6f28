"""FAISS indexes of a head's codes: the same codes, and the ranking of numpy over them."""

from __future__ import annotations

import numpy as np
import pytest

from search_world import clustered, compressor
from smec_st.quantization.codecs import Binary, Plain
from smec_st.quantization.engines import faiss_codes
from smec_st.quantization.head import Head
from smec_st.quantization.starts import calibrate_int8, product_codes, random_rotation
from smec_st.system.errors import DataError

faiss = pytest.importorskip("faiss")
ROWS, K = 1500, 10
CORPUS, QUERIES = clustered(ROWS), clustered(40, seed=1)


def head(name):
    folded = compressor().map_for(16)
    rows = folded.compress(CORPUS)
    codecs = {
        "float32": lambda: Plain(16),
        "float16": lambda: Plain(16, "float16"),
        "int8": lambda: calibrate_int8(rows),
        "binary": lambda: Binary(None, 16),
        "rotated": lambda: Binary(random_rotation(16, 0)),
        "pq": lambda: product_codes(rows, 4, 0),
        "small pq": lambda: product_codes(rows[:100], 4, 0),
    }
    return Head(folded, codecs[name]())


NAMES = ["float32", "float16", "int8", "binary", "rotated", "pq", "small pq"]


def same_but_for_ties(found, scores):
    """Whether the scores of what was found are the best ones."""
    best = -np.sort(-scores, axis=1)[:, :K]
    np.testing.assert_allclose(np.take_along_axis(scores, found, axis=1), best, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_ranking_are_those_of_the_head(name, tmp_path):
    own = head(name)
    codes, asked = own.encode(CORPUS), own.queries(QUERIES)
    scores = own.scores(asked, codes)
    index = own.to_faiss(metric="ip")
    stored = index.sa_encode(own.queries(CORPUS))
    if name != "float16":  # FAISS rounds half-way numbers the other way
        assert (stored.view(np.uint8) == faiss_codes(own.codec, codes)).mean() > 0.999  # but for ties
    index.add(own.queries(CORPUS))
    if name == "float16":
        index.reset()
        index.add_sa_codes(faiss_codes(own.codec, codes))
    faiss.write_index(index, str(tmp_path / "i.faiss"))
    found, got = own.search(faiss.read_index(str(tmp_path / "i.faiss")), asked, K)
    same_but_for_ties(found, scores)
    np.testing.assert_allclose(got, -np.sort(-scores, axis=1)[:, :K], atol=2e-6)
    if name in ("float32", "binary"):  # decoded vectors of one length: FAISS itself scores as the head does
        np.testing.assert_allclose(index.search(asked, K)[0], got, atol=2e-6)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("name", ["float32", "int8", "binary", "rotated", "pq"])
def test_lists_and_graphs_rank_as_the_head(name, kind, metric):
    own = head(name)
    asked = own.queries(QUERIES)
    index = own.to_faiss(kind, metric, CORPUS)
    index.add(own.queries(CORPUS))
    inner = faiss.downcast_index(faiss.downcast_index(index).index) if name == "rotated" else index
    if kind == "ivf":
        inner.nprobe = inner.nlist
    else:
        inner.hnsw.efSearch = ROWS
    found, _ = own.search(index, asked, K)
    scores = own.scores(asked, own.encode(CORPUS))
    best = -np.sort(-scores, axis=1)[:, :K]
    share = np.isclose(np.take_along_axis(scores, found, axis=1), best, atol=2e-6).mean()
    assert share == 1.0 if kind == "ivf" else share > 0.98


def test_search_fills_up_with_nothing():
    own = head("int8")
    index, asked = own.to_faiss(), own.queries(QUERIES[:3])
    found, scores = own.search(index, asked, 4)
    assert found.tolist() == [[-1] * 4] * 3
    assert np.isneginf(scores).all()
    index.add(own.queries(CORPUS[:2]))
    found, scores = own.search(index, asked, 4)
    assert (np.sort(found, axis=1) == [-1, -1, 0, 1]).all()
    assert np.isneginf(scores[:, 2:]).all()
    one, _ = own.search(index, asked[0], 4)
    np.testing.assert_array_equal(one, found[0])


def test_search_refuses_what_is_not_of_the_head():
    own = head("int8")
    index, asked = own.to_faiss(), own.queries(QUERIES[:3])
    with pytest.raises(DataError, match="Vectors must be 16 wide"):
        own.search(index, CORPUS[:3, :8])
    with pytest.raises(DataError, match="vectors of the index have 8 numbers, and of this head 16"):
        own.search(faiss.IndexFlatL2(8), asked)
    with pytest.raises(DataError, match="`k` must be 1 or more"):
        own.search(index, asked, 0)
