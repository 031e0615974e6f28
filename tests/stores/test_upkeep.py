"""``check`` detects drift and nothing else; ``migrate`` rewrites stores without losing anything."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smec_st.cli import run
from smec_st.compressor import Compressor
from smec_st.data import DataError, load_vectors, open_vectors
from smec_st.evaluation.overlap import kept_neighbors, pool_for
from smec_st.stores import check_drift

faiss = pytest.importorskip("faiss")
WIDTH, ROWS = 24, 600


class Killed(BaseException):
    """Stands for a kill; no code catches it."""


def make(rng, rows, mix):
    return (rng.normal(size=(rows, WIDTH)) * np.r_[np.ones(6), np.full(WIDTH - 6, 0.15)] @ mix).astype(np.float32)


@pytest.fixture
def mixes(rng):
    return [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(2)]


@pytest.fixture
def vectors(rng, mixes):
    return make(rng, ROWS, mixes[0])


@pytest.fixture
def folder(vectors, tmp_path):
    Compressor.fit(vectors, dims=(16, 8), method="pca", backbone={"model": "m"}).save(tmp_path / "c")
    return str(tmp_path / "c")


# -- check ------------------------------------------------------------------------------------------------------------


def test_kept_neighbors_equal_a_loop(rng, vectors, folder):
    folded, sample = Compressor.load(folder).map_for(8), vectors[:200]
    unit = sample / np.linalg.norm(sample, axis=1, keepdims=True)
    small = Compressor.load(folder).transform(sample, 8)
    shares = []
    for i in range(200):
        near = [
            {int(j) for j in sorted((j for j in range(200) if j != i), key=lambda j: -float(v[i] @ v[j]))[:10]}  # noqa: B023
            for v in (unit, small)
        ]
        shares.append(len(near[0] & near[1]) / 10)
    assert kept_neighbors(sample, folded) == pytest.approx(np.mean(shares), abs=2e-3)
    assert [pool_for(n) for n in (10, 200, 999, 10**9)] == [None, 200, 500, 2000]


def test_check_passes_vectors_like_those_of_the_fit_and_fails_others(rng, mixes, folder, tmp_path, capsys):
    np.save(tmp_path / "same.npy", make(rng, 700, mixes[0]))
    np.save(tmp_path / "other.npy", make(rng, 700, mixes[1]))
    assert run(["check", folder, str(tmp_path / "same.npy"), "--json", str(tmp_path / "drift.json")]) == 0
    figures = json.loads((tmp_path / "drift.json").read_text())
    assert figures["documents"]["pool"] == 500
    assert abs(figures["documents"]["drop"]["8"]) < 0.05
    assert figures["drifted"] is figures["documents"]["drifted"] is False
    assert figures["fingerprint"] == Compressor.load(folder).fingerprint
    assert "at the fit" in capsys.readouterr().out
    assert run(["check", folder, str(tmp_path / "other.npy")]) == 1
    assert "drift of documents: more than 0.05 lost" in capsys.readouterr().err
    assert run(["check", folder, str(tmp_path / "other.npy"), "--threshold", "1"]) == 0


@pytest.mark.parametrize(
    ("rows", "width", "match"),
    [(50, WIDTH, "has 50 vectors; at least 200 are needed"), (300, 8, "are 8 wide; this compressor reads 24")],
)
def test_check_refuses_too_few_and_other_spaces(rng, folder, tmp_path, capsys, rows, width, match):
    np.save(tmp_path / "new.npy", rng.normal(size=(rows, width)))
    assert run(["check", folder, str(tmp_path / "new.npy")]) == 2
    assert match in capsys.readouterr().err


def test_check_of_too_few_last_rows_says_so(rng, folder, tmp_path, capsys):
    np.save(tmp_path / "new.npy", rng.normal(size=(300, WIDTH)))
    assert run(["check", folder, str(tmp_path / "new.npy"), "--last", "5"]) == 2
    assert "new.npy (--last 5) has 5 vectors; at least 200 are needed" in capsys.readouterr().err


@pytest.fixture
def watched(rng, mixes, tmp_path):
    """A compressor that knows the queries of its fit: documents of one kind, queries of another."""
    corpus, queries = make(rng, ROWS, mixes[0]), make(rng, 400, mixes[0])
    fitted = Compressor.fit(corpus, queries, dims=(16, 8), method="pca")
    fitted.save(tmp_path / "watched")
    return fitted


def test_documents_and_queries_have_a_threshold_each(rng, mixes, watched, tmp_path, capsys):
    for name, mix in (("same", 0), ("other", 1)):
        np.save(tmp_path / f"{name}.npy", make(rng, 700, mixes[mix]))
    same, other, out = (str(tmp_path / name) for name in ("same.npy", "other.npy", "drift.json"))
    command = ["check", str(tmp_path / "watched"), "--json", out]
    assert run([*command, same, "--queries", same]) == 0
    assert run([*command, same, "--queries", other]) == 1
    figures = json.loads((tmp_path / "drift.json").read_text())
    assert [figures[side]["drifted"] for side in ("documents", "queries")] == [False, True]
    assert figures["queries"]["pool"] == 200  # as many as the fit can be compared with
    captured = capsys.readouterr()
    assert "200 queries" in captured.out
    assert "drift of queries" in captured.err
    assert "drift of documents" not in captured.err
    assert run([*command, same, "--queries", other, "--query-threshold", "1"]) == 0
    assert run([*command, other, "--queries", other, "--query-threshold", "1"]) == 1
    assert run([*command, "--queries", other]) == 1
    assert set(json.loads((tmp_path / "drift.json").read_text())) == {"fingerprint", "drifted", "queries"}


def test_check_is_a_library_call_on_arrays(rng, mixes, watched):
    found = check_drift(watched, make(rng, 500, mixes[0]), make(rng, 300, mixes[1]), query_threshold=0.02)
    assert [(drift.side, drift.is_beyond) for drift in found] == [("documents", False), ("queries", True)]
    assert found[1].threshold == 0.02
    recorded = watched.info["kept_query_neighbors"]["200"]
    assert found[1].at_fit == {int(dim): kept for dim, kept in recorded.items()}
    with pytest.raises(DataError, match="nothing to check"):
        check_drift(watched)
    with pytest.raises(DataError, match="from 0 to 1, got nan"):
        check_drift(watched, make(rng, 500, mixes[0]), threshold=float("nan"))


def test_the_newest_rows_of_a_log_are_looked_at(rng, mixes, watched):
    log = np.concatenate([make(rng, 5000, mixes[0]), make(rng, 300, mixes[1])])
    assert not check_drift(watched, queries=log)[0].is_beyond
    assert check_drift(watched, queries=log, last=300)[0].is_beyond
    assert check_drift(watched, queries=log[:5000], last=300)[0].kept == (
        check_drift(watched, queries=log[4700:5000])[0].kept
    )


def test_a_query_that_is_asked_often_counts_once(rng, mixes, watched):
    queries = make(rng, 250, mixes[0])
    log = np.repeat(queries, rng.integers(1, 30, 250), axis=0)[:5000]
    asked = check_drift(watched, queries=rng.permutation(np.concatenate([queries, log])))[0]
    assert asked.kept[8] == pytest.approx(check_drift(watched, queries=queries)[0].kept[8], abs=0.04)
    with pytest.raises(DataError, match="has 150 distinct vectors; at least 200 are needed"):
        check_drift(watched, queries=np.repeat(queries[:150], 10, axis=0))


def test_queries_are_not_compared_where_the_fit_had_none(rng, mixes, folder):
    with pytest.raises(DataError, match="no record of the queries of its fit"):
        check_drift(Compressor.load(folder), queries=make(rng, 300, mixes[0]))


def test_only_queries_that_training_may_read_are_recorded(rng, mixes):
    corpus, queries = make(rng, 300, mixes[0]), make(rng, 400, mixes[0])
    part = Compressor.fit(corpus, queries, dims=(8,), method="pca", unlabelled_queries=np.arange(250))
    queries[250:] = 1.0
    same = Compressor.fit(corpus, queries, dims=(8,), method="pca", unlabelled_queries=np.arange(250))
    assert part.info["kept_query_neighbors"] == same.info["kept_query_neighbors"]
    assert set(part.info["kept_query_neighbors"]) == {"200"}


# -- migrate ----------------------------------------------------------------------------------------------------------


def test_dry_run_counts_and_writes_nothing(vectors, folder, tmp_path, capsys):
    np.save(tmp_path / "store.npy", vectors)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run(["migrate", folder, str(tmp_path / "store.npy"), "--dim", "8", "--precision", "int8", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"{ROWS * WIDTH * 4:,} bytes become {ROWS * 8:,} (12x smaller)" in out
    assert "of the ten nearest neighbours stay" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_migrate_beside_and_in_place(vectors, folder, tmp_path, capsys):
    store, expected = tmp_path / "store.npy", Compressor.load(folder).transform(vectors, 8)
    np.save(store, vectors)
    assert run(["migrate", folder, str(store), "--dim", "8", "--out", str(tmp_path / "new")]) == 0
    np.testing.assert_array_equal(np.load(store), vectors)
    np.testing.assert_allclose(np.load(tmp_path / "new" / "shard-000000.npy"), expected, atol=1e-6)
    assert run(["migrate", folder, str(store), "--dim", "8", "--in-place"]) == 0
    np.testing.assert_allclose(np.load(store), expected, atol=1e-6)
    assert not list(tmp_path.glob(".store*"))
    capsys.readouterr()
    assert run(["migrate", folder, str(store), "--dim", "8", "--in-place"]) == 2
    assert "compressed already" in capsys.readouterr().err
    assert run(["migrate", folder, str(store), "--dim", "8"]) == 2
    assert "say where to" in capsys.readouterr().err


@pytest.mark.parametrize("is_folder", [True, False])
def test_migrate_parquet_in_place(vectors, folder, tmp_path, is_folder):
    store = tmp_path / ("store" if is_folder else "store.parquet")
    (parquet_folder if is_folder else parquet)(vectors, store)
    assert run(["migrate", folder, str(store), "--dim", "8", "--in-place"]) == 0
    np.testing.assert_allclose(load_vectors(store), Compressor.load(folder).transform(vectors, 8), atol=1e-6)


def parquet(vectors, path):
    table = pa.table(
        {"id": [str(i) for i in range(ROWS)], "vector": pa.array(vectors.tolist(), pa.list_(pa.float32()))}
    )
    pq.write_table(table, path)


def parquet_folder(vectors, path):
    path.mkdir()
    parquet(vectors, path / "a.parquet")


def faiss_index(vectors, path):
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors)
    faiss.write_index(index, str(path))


def kill_at(patched, number, after):
    """Make the run end before or after its nth rename or removal."""
    seen = itertools.count()

    def counted(step):
        def maybe_killed(*args, **kwargs):
            is_last = next(seen) == number
            if is_last and not after:
                raise Killed
            result = step(*args, **kwargs)
            if is_last:
                raise Killed
            return result

        return maybe_killed

    for module, name in ((os, "replace"), (os, "unlink"), (shutil, "rmtree")):
        patched.setattr(module, name, counted(getattr(module, name)))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("s.npy", lambda vectors, path: np.save(path, vectors)),
        ("s.parquet", parquet),
        ("s", parquet_folder),
        ("s.faiss", faiss_index),
    ],
)
def test_migration_in_place_survives_a_kill_at_any_step(vectors, folder, tmp_path, monkeypatch, name, write, after):
    """After a kill before or after the nth rename or removal, the same command completes the new store."""
    command = ["migrate", folder, str(tmp_path / "there" / name), "--dim", "8", "--in-place"]
    expected = Compressor.load(folder).transform(vectors, 8)
    for cut_at in itertools.count():
        shutil.rmtree(tmp_path / "there", ignore_errors=True)
        (tmp_path / "there").mkdir()
        write(vectors, tmp_path / "there" / name)
        with monkeypatch.context() as patched:
            kill_at(patched, cut_at, after)
            try:
                run(command)
                break
            except Killed:
                pass
        code = run(command)
        assert code == 0 or (code == 2 and not (tmp_path / "there" / f".{name}.swap.json").exists())
        np.testing.assert_allclose(load_vectors(tmp_path / "there" / name), expected, atol=1e-6)
        assert run(command) == 2, "compressed already"
        assert not list((tmp_path / "there").glob(".*"))
    assert cut_at >= 4


@pytest.mark.parametrize("with_ids", [True, False])
def test_migrate_faiss(vectors, folder, tmp_path, capsys, with_ids):
    index = faiss.IndexFlatIP(WIDTH)
    if with_ids:
        index = faiss.IndexIDMap(index)
        index.add_with_ids(vectors, np.arange(ROWS) + 7)
    else:
        index.add(vectors)
    faiss.write_index(index, str(tmp_path / "s.faiss"))
    assert run(["migrate", folder, str(tmp_path / "s.faiss"), "--dim", "8", "--in-place"]) == 0
    source = open_vectors(tmp_path / "s.faiss")
    batch = next(source.batches(ROWS))
    np.testing.assert_allclose(batch.rows, Compressor.load(folder).transform(vectors, 8), atol=1e-6)
    assert batch.ids == ([str(i + 7) for i in range(ROWS)] if with_ids else None)
    capsys.readouterr()
    assert run(["migrate", folder, str(tmp_path / "s.faiss"), "--dim", "8", "--in-place"]) == 2
    assert "compressed already" in capsys.readouterr().err


def test_migrate_milvus(vectors, folder, tmp_path, capsys, monkeypatch):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(tmp_path / "s.db"))
    schema = client.create_schema()
    schema.add_field("key", pymilvus.DataType.VARCHAR, is_primary=True, max_length=20)
    schema.add_field("text", pymilvus.DataType.VARCHAR, max_length=20)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=WIDTH)
    client.create_collection("docs", schema=schema)
    rows = [{"key": f"d{i:04}", "text": f"t{i}", "vector": row.tolist()} for i, row in enumerate(vectors)]
    client.insert("docs", rows)
    client.flush("docs")
    client.close()
    store = f"{tmp_path / 's.db'}#docs"
    expected = Compressor.load(folder).transform(vectors, 8)
    assert run(["migrate", folder, store, "--dim", "8", "--out", "small"]) == 0
    source = open_vectors(f"{tmp_path / 's.db'}#small")
    batch = next(source.batches(2000))
    np.testing.assert_allclose(batch.rows, expected, atol=1e-6)
    found = source.client.query("small", filter='key == "d0042"', output_fields=["text"])
    assert found[0]["text"] == "t42"
    source.client.close()
    np.testing.assert_allclose(load_vectors(store), vectors, atol=1e-6)
    capsys.readouterr()
    assert run(["migrate", folder, store, "--dim", "8", "--out", "small"]) == 2
    assert "has a collection small already" in capsys.readouterr().err
    assert run(["migrate", folder, store, "--dim", "8", "--precision", "int8", "--out", "tiny"]) == 2
    assert "cannot hold int8" in capsys.readouterr().err
    with monkeypatch.context() as patched:

        def killed(*_, **__):
            raise Killed

        patched.setattr(pymilvus.MilvusClient, "rename_collection", killed)
        with pytest.raises(Killed):
            run(["migrate", folder, store, "--dim", "8", "--in-place"])
    assert run(["migrate", folder, store, "--dim", "8", "--in-place"]) == 0
    np.testing.assert_allclose(load_vectors(store), expected, atol=1e-6)


def test_migration_in_place_says_that_milvus_is_missing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    (tmp_path / "s.db").touch()
    assert run(["migrate", folder, f"{tmp_path / 's.db'}#docs", "--dim", "8", "--in-place"]) == 2
    assert "reading Milvus needs pymilvus" in capsys.readouterr().err
