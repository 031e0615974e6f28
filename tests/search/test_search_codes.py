"""A funnel whose first stage is codes: same recall, faults and guarantees as one of vectors."""

from __future__ import annotations

import numpy as np
import pytest

from search_world import clustered, compressor, naive, recall
from smec_st import Compressor
from smec_st.cli import run
from smec_st.data import DataError
from smec_st.quantization.codecs import Binary
from smec_st.quantization.head import Head
from smec_st.quantization.starts import calibrate_int8, product_codes, random_rotation
from smec_st.search import FunnelIndex, Schedule, Step
from smec_st.search.heads import EXACT_BELOW

pytest.importorskip("faiss")
ROWS = EXACT_BELOW + 200
CORPUS, QUERIES = clustered(ROWS), clustered(60, seed=1)


@pytest.fixture(scope="module")
def coded():
    """A compressor with product codes of 4 bytes, signs of 2 bytes, and int8 codes of 8 bytes."""
    plain = compressor()
    wide, narrow = plain.map_for(16), plain.map_for(8)
    heads = (
        Head(wide, product_codes(wide.compress(CORPUS[:1000]), 4, 0), info={"for_bytes": 4}),
        Head(wide, Binary(random_rotation(16, 0)), info={"for_bytes": 2}),
        Head(narrow, calibrate_int8(narrow.compress(CORPUS[:1000])), info={"for_bytes": 8}),
    )
    return Compressor(plain.maps, plain.info, heads)


@pytest.mark.parametrize("head", ["flat-codes:4", "codes:4", "hnsw-codes:4", "codes:2", "codes:8"])
def test_a_head_of_codes_finds_filters_deletes_and_comes_back(coded, head, tmp_path):
    size = int(head.rpartition(":")[2])
    wide = Schedule((Step(size, 3000, codes=True), Step(32, 10)), effort=3000)
    even = np.arange(ROWS) % 2 == 0
    few = np.arange(ROWS) % 100 == 0
    with FunnelIndex.create(tmp_path / "i", coded, head=head, fields={"even": "bool", "few": "bool"}) as index:
        index.add(CORPUS[:3000], np.arange(3000), {"even": even[:3000], "few": few[:3000]})
        index.add(CORPUS[3000:], np.arange(3000, ROWS), {"even": even[3000:], "few": few[3000:]})
        assert recall(index.search(QUERIES, schedule=wide).ids, naive(CORPUS, QUERIES, 10)) >= 0.95
        gone = naive(CORPUS, QUERIES, 1)[:, 0]
        index.delete(np.unique(gone))
        left = np.ones(ROWS, dtype=bool)
        left[gone] = False
        for where, mask in (({}, left), ({"even": True}, left & even), ({"few": True}, left & few)):
            hits = index.search(QUERIES, schedule=wide, where=where)
            assert mask[hits.ids].all()
            assert recall(hits.ids, naive(CORPUS, QUERIES, 10, mask)) >= (1.0 if where == {"few": True} else 0.95)
        index.flush()
        before = index.search(QUERIES, schedule=wide)
        ram = index.bytes()["ram"]["head"] / ROWS
        assert size <= ram <= size + (330 if head.startswith("hnsw") else 24)
    with FunnelIndex.open(tmp_path / "i", compressor()) as index:  # codes are those of the index
        assert np.array_equal(before.ids, index.search(QUERIES, schedule=wide).ids)
        index.compact()
        assert recall(index.search(QUERIES, schedule=wide).ids, naive(CORPUS, QUERIES, 10, left)) >= 0.95
        index.verify()


def test_codes_without_originals_ask_for_queries_before_anything_is_written(coded, tmp_path):
    with pytest.raises(DataError, match=r"tuned on queries: give `queries` \(--queries\)"):
        FunnelIndex.build(tmp_path / "i", coded, CORPUS[:500], head="codes:4", originals=None)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("originals", ["float32", "float16", None])
def test_the_schedule_reaches_its_target(coded, originals, tmp_path):
    corpus = CORPUS[:1500]
    with FunnelIndex.build(
        tmp_path / "i", coded, corpus, head="codes:4", originals=originals, queries=QUERIES
    ) as index:
        first = index.schedule.steps[0]
        assert (first.size, first.codes) == (4, True)
        assert str(index.schedule).startswith("4B:")
        assert index.schedule.recall_low >= 0.99
        exact = corpus if originals else coded.transform(corpus, dim=index.settings.sizes[-1])
        asked = QUERIES if originals else coded.transform(QUERIES, dim=index.settings.sizes[-1])
        assert recall(index.search(QUERIES).ids, naive(exact, asked, 10)) >= 0.97
        if originals:
            assert index.tune().recall_low >= 0.99  # documents ask


def test_the_first_stage_ranks_as_numpy_does(coded, tmp_path):
    head = coded.head(bytes=4)
    scores = head.scores(head.queries(QUERIES), head.encode(CORPUS))
    best = -np.sort(-scores, axis=1)[:, :10]
    with FunnelIndex.create(tmp_path / "i", coded, head="flat-codes:4") as index:
        index.add(CORPUS)
        reader = index._backend.reader()
        keys, _ = reader.head(head.queries(QUERIES), 100, None, None)
        again = reader.scores(-1, head.queries(QUERIES), keys, keys >= 0)
    np.testing.assert_allclose(-np.sort(-again, axis=1)[:, :10], best, atol=2e-6)


@pytest.mark.parametrize(
    ("head", "match"),
    [
        ("codes:5", "no codes of 5 bytes"),
        ("codes:0", "unknown head"),
        ("codes:x", "unknown head"),
        ("tree-codes:4", "unknown head"),
    ],
)
def test_codes_that_are_not_there_are_refused(coded, head, match, tmp_path):
    with pytest.raises(DataError, match=match):
        FunnelIndex.create(tmp_path / "i", coded, head=head)
    assert not (tmp_path / "i").exists()


def test_what_codes_cannot_do_is_refused(coded, tmp_path):
    with pytest.raises(DataError, match="rescored by larger vectors"):
        FunnelIndex.create(tmp_path / "i", coded, head="codes:4", dims=(4, 16))
    with pytest.raises(DataError, match="Milvus has no head"):
        FunnelIndex.create(tmp_path / "i.db", coded, head="codes:4")
    with FunnelIndex.create(tmp_path / "j", coded, head="codes:4", dims=(16,), originals=None) as index:
        index.add(CORPUS[:50])
        with pytest.raises(DataError, match="query vectors are 16 wide; this index takes 32"):
            index.search(coded.transform(QUERIES, dim=16))
        with pytest.raises(DataError, match="tuned on queries"):
            index.tune()
        with pytest.raises(DataError, match="narrow copy searches vectors"):
            index.narrow(tmp_path / "k", 16)


def test_the_command_line_searches_codes_first(coded, tmp_path, capsys):
    coded.save(tmp_path / "c")
    np.save(tmp_path / "corpus.npy", CORPUS[:800])
    command = ["index", str(tmp_path / "c"), "--vectors", str(tmp_path / "corpus.npy"), "--out", str(tmp_path / "i")]
    assert run([*command, "--bytes", "4", "--head", "flat"]) == 2
    assert "--head or --bytes, not both" in capsys.readouterr().err
    assert run([*command, "--bytes", "5"]) == 2
    assert "no codes of 5 bytes" in capsys.readouterr().err
    assert run([*command, "--bytes", "4"]) == 0
    assert "schedule 4B:" in capsys.readouterr().out
