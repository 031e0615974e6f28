"""``FunnelIndex`` on each engine: exact results, changes, filters, reopening, and bad input."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from search_world import WIDTH, clustered, compressor, naive, recall, unit
from smec_st.data import DataError
from smec_st.search import FunnelIndex, Schedule, Step
from smec_st.search.tuning import CONFIRM, ENOUGH

ENGINES = ["faiss", "lite"]


@pytest.fixture(params=ENGINES)
def uri(request, tmp_path):
    return str(tmp_path / {"faiss": "index", "lite": "index.db"}[request.param])


@contextlib.contextmanager
def milvus_server(folder):
    """Run a server on localhost that speaks the protocol of Milvus."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def exact(index, k):
    """Return a schedule that rescores all rows."""
    return Schedule((Step(index.settings.sizes[0], 10_000), Step(index.settings.full, k)), k=k)


# -- build and search -------------------------------------------------------------------------------------------------


def test_build_reaches_its_target_on_unseen_queries(uri):
    corpus, queries = clustered(600), clustered(80, seed=2)
    with FunnelIndex.build(uri, compressor(), corpus, queries=clustered(80, seed=1), recall=0.95) as index:
        assert index.schedule.recall_low >= 0.95
        assert index.schedule.steps[0].keep < 300
        assert index.schedule.sizes[-1] == WIDTH
        hits = index.search(queries)
        assert recall(hits.ids, naive(corpus, queries, 10)) >= 0.95
        cosine = np.take_along_axis(unit(queries) @ unit(corpus).T, hits.ids, axis=1)
        assert np.allclose(hits.scores, cosine, atol=1e-5)
        assert (np.diff(hits.scores, axis=1) <= 0).all()


def test_a_funnel_that_rescores_all_rows_is_exact_search(uri):
    corpus, queries = clustered(300), clustered(40, seed=1)
    with FunnelIndex.create(uri, compressor(), dims=(4, 8), head="flat") as index:
        index.add(corpus)
        hits = index.search(queries, 7, schedule=exact(index, 7))
        assert np.array_equal(hits.ids, naive(corpus, queries, 7))
        one = index.search(queries[0], 7, schedule=exact(index, 7))
        assert np.array_equal(one.ids, hits.ids[:1])


@pytest.mark.slow
def test_settings_schedule_and_compressor_come_back_from_the_uri_alone(uri):
    corpus, queries = clustered(300), clustered(10, seed=1)
    rows = {"lang": ["en", None] * 150}
    with FunnelIndex.build(uri, compressor(), corpus, ids=[f"d{i}" for i in range(300)], fields=rows) as built:
        before, settings = built.search(queries), built.settings
    with FunnelIndex.open(uri) as index:
        assert index.settings == settings
        assert index.compressor.fingerprint == compressor().fingerprint
        after = index.search(queries)
    assert np.array_equal(before.ids, after.ids)
    assert np.array_equal(before.scores, after.scores)


def test_without_originals_the_widest_size_ranks(uri):
    corpus, queries = clustered(300), clustered(20, seed=1)
    with FunnelIndex.create(uri, compressor(), originals=None, head="flat") as index:
        assert index.settings.full == 16
        index.add(compressor().transform(corpus[:100], dim=16), range(100), fingerprint=compressor().fingerprint)
        index.add(corpus[100:], range(100, 300))
        hits = index.search(queries, 5, schedule=exact(index, 5))
        small = compressor().transform(corpus, dim=16), compressor().transform(queries, dim=16)
        assert np.array_equal(hits.ids, naive(*small, 5))


def test_narrow_queries_stop_at_their_own_size(uri):
    corpus, queries = clustered(300), clustered(20, seed=1)
    with FunnelIndex.create(uri, compressor(), dims=(4, 8, 16), head="flat") as index:
        index.add(corpus)
        for size in (4, 8):
            narrow = compressor().transform(queries, dim=size)
            hits = index.search(narrow, 6, fingerprint=compressor().fingerprint)
            small = compressor().transform(corpus, dim=size)
            assert recall(hits.ids, naive(small, narrow, 6)) == 1
        with pytest.raises(DataError, match="query vectors are 5 wide; this index takes 32 or 4 or 8 or 16"):
            index.search(queries[:, :5])


def test_tuning_works_for_an_index_that_was_filled_by_hand(uri):
    corpus, queries = clustered(400), clustered(40, seed=1)
    with FunnelIndex.create(uri, compressor()) as index:
        index.add(corpus)
        assert index.schedule.recall is None
        chosen = index.tune(queries, recall=0.9, k=5)
        assert chosen.recall_low >= 0.9
        assert (chosen.k, chosen.rows, chosen.target) == (5, 400, 0.9)
    with FunnelIndex.open(uri) as index:
        assert index.schedule == chosen


@pytest.mark.slow
def test_held_out_queries_must_reach_the_target_too(uri):
    corpus, easy = clustered(600), clustered(120, seed=1)
    hard = np.random.default_rng(5).normal(size=(40, WIDTH)).astype(np.float32)  # far from all clusters
    truth = naive(corpus, hard, 10)
    mixed = easy.copy()
    mixed[::CONFIRM] = hard
    with FunnelIndex.create(uri, compressor()) as index:
        index.add(corpus)
        lenient = index.tune(np.delete(easy, np.s_[::CONFIRM], axis=0)[: ENOUGH - 1], recall=0.97)
        assert recall(index.search(hard).ids, truth) < 0.97
        careful = index.tune(mixed, recall=0.97)
        assert recall(index.search(hard).ids, truth) >= 0.97
        assert careful.recall_low >= 0.97
        assert (lenient.queries, careful.queries) == (ENOUGH - 1, 120)


def test_a_narrow_copy_ranks_by_its_widest_size(uri, tmp_path):
    corpus, queries = clustered(300), clustered(20, seed=1)
    with FunnelIndex.create(uri, compressor(), dims=(4, 8, 16), head="flat", fields={"n": "int"}) as wide:
        wide.add(corpus, fields={"n": range(300)})
        wide.delete([0, 1])
        with wide.narrow(tmp_path / "narrow", 8) as narrow:
            assert (narrow.settings.sizes, narrow.settings.originals, len(narrow)) == ((4, 8), None, 298)
            hits = narrow.search(queries, 6, where={"n": {"$lt": 200}}, schedule=exact(narrow, 6))
        with pytest.raises(DataError, match="has the sizes 4, 8, 16, not 5"):
            wide.narrow(tmp_path / "other", 5)
    small = compressor().transform(corpus, dim=8), compressor().transform(queries, dim=8)
    allowed = (np.arange(300) > 1) & (np.arange(300) < 200)
    assert recall(hits.ids, naive(*small, 6, allowed)) == 1


# -- change -----------------------------------------------------------------------------------------------------------


def test_add_delete_replace_and_filter_agree_with_a_list(uri):
    rng = np.random.default_rng(3)
    corpus, queries = clustered(400), clustered(15, seed=1)
    year = rng.integers(2000, 2010, 400)
    held: dict[str, tuple[int, int]] = {}
    with FunnelIndex.create(uri, compressor(), head="flat", id_type="str", fields={"year": "int"}) as index:
        for start in range(0, 300, 60):
            rows = range(start, start + 60)
            index.add(corpus[start : start + 60], [f"d{i}" for i in rows], {"year": year[start : start + 60]})
            held.update({f"d{i}": (i, int(year[i])) for i in rows})
        gone = [f"d{i}" for i in range(0, 300, 7)]
        assert index.delete([*gone, "never"]) == len(gone)
        for each in gone:
            del held[each]
        index.add(corpus[300:320], [f"d{i}" for i in range(1, 21)], {"year": year[300:320]}, replace=True)
        held.update({f"d{i}": (i + 299, int(year[i + 299])) for i in range(1, 21)})

        def agrees():
            assert len(index) == len(held)
            names, places = list(held), [row for row, _ in held.values()]
            years = np.array([y for _, y in held.values()])
            for where, mask in (
                ({}, years > 0),
                ({"year": {"$gte": 2004}}, years >= 2004),
                ({"year": 2001}, years == 2001),
            ):
                hits = index.search(queries, 5, where=where, schedule=exact(index, 5))
                expected = naive(corpus[places], queries, 5, mask)
                assert hits.ids.tolist() == [[names[i] for i in row] for row in expected.tolist()]

        agrees()
        index.compact()
        agrees()
    with FunnelIndex.open(uri) as index:
        agrees()


def test_existing_ids_are_refused_and_nothing_is_added(uri):
    corpus = clustered(30)
    with FunnelIndex.create(uri, compressor()) as index:
        index.add(corpus[:10])
        with pytest.raises(DataError, match="1 of these 10 ids are in the index already: 9"):
            index.add(corpus[10:20], range(9, 19))
        assert len(index) == 10


def test_one_thread_searches_while_another_adds(uri):
    corpus, queries = clustered(1500), clustered(10, seed=1)
    first = naive(corpus[:500], queries, 1)[:, 0]
    with FunnelIndex.create(uri, compressor(), head="flat", dims=(8,)) as index:
        index.add(corpus[:500])
        stop, failures, searches = threading.Event(), [], []

        def search():
            while not stop.is_set():
                try:
                    hits = index.search(queries, 3, schedule=exact(index, 3))
                    best = (unit(corpus[hits.ids[:, 0]]) * unit(queries)).sum(axis=1)
                    assert (best >= (unit(corpus[first]) * unit(queries)).sum(axis=1) - 1e-5).all()
                    searches.append(len(index))
                except Exception as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=search)
        thread.start()
        for start in range(500, 1500, 100):
            index.add(corpus[start : start + 100], range(start, start + 100))
        stop.set()
        thread.join()
        assert failures == []
        assert searches
        assert np.array_equal(index.search(queries, 3, schedule=exact(index, 3)).ids, naive(corpus, queries, 3))


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_an_empty_index_and_k_above_its_size_return_all_rows(uri):
    corpus = clustered(4)
    with FunnelIndex.create(uri, compressor()) as index:
        assert index.search(corpus, 3).ids.shape == (4, 0)
        index.add(corpus[:3])
        hits = index.search(corpus, 50)
        assert hits.ids.shape == (4, 3)
        assert sorted(hits.ids[0].tolist()) == [0, 1, 2]
        assert index.delete([0, 1, 2]) == 3
        assert (index.search(corpus, 3).ids == -1).all()
        with pytest.raises(DataError, match="`k` must be 1 or more, got 0"):
            index.search(corpus, 0)
        with pytest.raises(DataError, match="holds 0 rows; a schedule is chosen from at least 2"):
            index.tune()


def test_vectors_of_another_width_fingerprint_or_not_finite_are_refused(uri):
    corpus = clustered(20)
    with FunnelIndex.create(uri, compressor(), fields={"lang": "str"}) as index:
        broken = corpus.copy()
        broken[7, 3] = np.nan
        for vectors, more, match in (
            (corpus[:, :31], {}, "document vectors are 31 wide; this index takes 32"),
            (corpus[:, :16], {}, "document vectors are 16 wide"),
            (broken, {}, "document vectors hold NaN or infinity in row 7"),
            (corpus.astype(int), {}, "must be floats"),
            (corpus, {"fingerprint": "0123"}, "made with the compressor 0123, the index with"),
            (corpus, {"ids": range(19)}, "20 vectors came with 19 ids"),
            (corpus, {"ids": [0] * 20}, "ids come more than once: 0"),
            (corpus, {"ids": ["a"] * 20}, "ids of this index are whole numbers from 0, got 'a'"),
            (corpus, {"fields": {"size": [1] * 20}}, "the index has no field size; it has lang"),
            (corpus, {"fields": {"lang": [1] * 20}}, "field 'lang' holds str, got 1"),
            (corpus, {"fields": {"lang": ["en"]}}, "20 vectors came with 1 values of 'lang'"),
        ):
            with pytest.raises(DataError, match=match):
                index.add(vectors, **more)
        assert len(index) == 0
        index.add(corpus)
        for queries, more, match in (
            (broken, {}, "query vectors hold NaN or infinity in row 7"),
            (corpus, {"fingerprint": "0123"}, "cannot be mixed"),
            (corpus, {"where": {"size": 1}}, "no field 'size'"),
            ("text", {}, "no model is given to embed them"),
            ([], {}, "no queries were given"),
        ):
            with pytest.raises(DataError, match=match):
                index.search(queries, **more)
    with pytest.raises(DataError, match=r"(made with the compressor|no complete index for the compressor)"):
        FunnelIndex.open(uri, compressor(seed=5))


def test_bad_options_and_missing_indexes_are_one_line_errors(uri, tmp_path):
    for options, match in (
        ({"dims": (64,)}, "sizes must be among 4, 8, 16"),
        ({"head": "tree"}, "unknown head 'tree'"),
        ({"id_type": "float"}, "ids are int or str"),
        ({"originals": "int8"}, "originals are kept as float32 or float16"),
        ({"fields": {"a b": "str"}}, "'a b' cannot be the name of a field"),
        ({"fields": {"a": "date"}}, "unknown type 'date'"),
    ):
        with pytest.raises(DataError, match=match):
            FunnelIndex.create(uri, compressor(), **options)
    with pytest.raises(DataError, match="no such index|holds no index"):
        FunnelIndex.open(uri)
    FunnelIndex.create(uri, compressor()).close()
    with pytest.raises(DataError, match="exists and is not empty|holds an index of the compressor"):
        FunnelIndex.create(uri, compressor())
    with pytest.raises(DataError, match="exists and is not empty|holds an index of the compressor"):
        FunnelIndex.build(uri, compressor(), clustered(20))


# -- more than one process, more than one index -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_differs_from_a_file_by_its_uri_alone(tmp_path):
    corpus, queries, asked = clustered(600), clustered(20, seed=1), clustered(40, seed=2)
    with milvus_server(tmp_path / "data") as server:
        found = []
        for uri in (server, str(tmp_path / "file.db")):
            with FunnelIndex.build(uri, compressor(), corpus, queries=asked, fields={"n": list(range(600))}) as index:
                index.delete([5, 6])
                found.append(index.search(queries, where={"n": {"$lt": 400}}).ids)
        assert np.array_equal(*found)
        with FunnelIndex.create(server, compressor(seed=5)) as other:
            other.add(corpus[:50])
        with pytest.raises(DataError, match="holds several indexes; name the compressor of one"):
            FunnelIndex.open(server)
        with FunnelIndex.open(server, compressor()) as first, FunnelIndex.open(server, compressor(seed=5)) as second:
            assert (len(first), len(second)) == (598, 50)


def test_a_server_that_does_not_answer_is_one_line():
    with pytest.raises(DataError, match="cannot open http://127.0.0.1:9"):
        FunnelIndex.open("http://127.0.0.1:9")
