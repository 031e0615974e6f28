"""Bad rows are found before hours are spent and can be left out; outputs are the files that their names say."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smec_st.cli import run
from smec_st.compressor import Compressor
from smec_st.compressor.scoring import score_compressor
from smec_st.data import DataError, load_collection, load_vectors, open_vectors, read_safetensors
from smec_st.maps import FoldedMap, Layer
from smec_st.quantization.codecs import Binary, Product
from smec_st.stores import BadRows, Job, check_drift, estimate, transform_files
from smec_st.stores.migrate import Plan

WIDTH, ROWS = 16, 1000
BAD = {17: np.nan, 300: 0.0, 301: np.inf, 999: -np.inf}


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def compressor(vectors):
    return Compressor.fit(vectors, dims=(8, 4), method="pca")


@pytest.fixture
def folder(compressor, tmp_path):
    compressor.save(tmp_path / "c")
    return str(tmp_path / "c")


@pytest.fixture
def spoiled(vectors):
    rows = vectors.copy()
    for row, value in BAD.items():
        rows[row] = value if value == 0 else np.where(np.arange(WIDTH) == 3, value, rows[row])
    return rows


def write(path, rows):
    if path.suffix == ".npy":
        np.save(path, rows)
    else:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        pq.write_table(pa.table({"id": [f"d{i}" for i in range(len(rows))], "vector": lists}), path)
    return str(path)


# -- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["transform", "migrate", "check"])
@pytest.mark.parametrize("name", ["in.npy", "in.parquet"])
def test_all_bad_rows_are_listed_with_file_row_and_id(folder, spoiled, tmp_path, capsys, command, name):
    source = write(tmp_path / name, spoiled)
    dry = {"transform": [str(tmp_path / "out"), "--dry-run"], "migrate": ["--dry-run"], "check": []}
    assert run([command, folder, source, *dry[command]]) == 2
    *listed, last = capsys.readouterr().err.splitlines()
    known = [f" (id d{row})" if name == "in.parquet" else "" for row in BAD]
    whys = ["holds NaN", "is all zero", "holds infinity", "holds infinity"]
    assert listed == [f"{source}, row {row}{key} {why}" for row, key, why in zip(BAD, known, whys, strict=True)]
    assert last.startswith(f"smec-st: {source}: 4 rows cannot be used")
    assert not (tmp_path / "out").exists()


def test_bad_rows_of_a_folder_are_listed_by_file(folder, spoiled, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    paths = [
        write(tmp_path / "in" / f"part-{part}.parquet", spoiled[part * 300 : part * 300 + 300]) for part in range(4)
    ]
    assert run(["check", folder, str(tmp_path / "in")]) == 2
    listed = capsys.readouterr().err.splitlines()[:-1]
    assert [line.partition(" (")[0] for line in listed] == [
        f"{paths[0]}, row 17",
        f"{paths[1]}, row 0",
        f"{paths[1]}, row 1",
        f"{paths[3]}, row 99",
    ]


def test_a_dry_run_of_good_rows_estimates(folder, vectors, tmp_path, capsys):
    source = write(tmp_path / "in.npy", vectors)
    assert run(["transform", folder, source, str(tmp_path / "out"), "--dry-run", "--dim", "4"]) == 0
    said = capsys.readouterr().out
    assert "1,000 vectors" in said
    assert "64,000 bytes become 16,000 (4x smaller)" in said
    assert estimate(Plan(Job(folder, source), None)).bad == ()


def test_a_dry_run_and_a_check_look_at_the_same_sample(folder, vectors, tmp_path):
    rows = np.concatenate([vectors, vectors[:300]])  # repeated rows count once
    source = write(tmp_path / "in.npy", rows)
    (drift,) = check_drift(Compressor.load(folder), open_vectors(source))
    for dim in (8, 4):
        assert estimate(Plan(Job(folder, source, dim=dim), None)).kept_neighbors == drift.kept[dim]


def test_bad_rows_stop_a_transform_and_say_what_to_do(folder, spoiled, tmp_path):
    with pytest.raises(BadRows, match="--skip-bad leaves them out") as caught:
        transform_files(Job(folder, write(tmp_path / "in.npy", spoiled)), tmp_path / "out")
    assert caught.value.rows[0].row == 17


@pytest.mark.parametrize("name", ["in.npy", "in.parquet"])
@pytest.mark.parametrize("out", ["out", "out.parquet"])
def test_bad_rows_are_left_out_and_the_others_keep_their_ids(folder, compressor, spoiled, tmp_path, capsys, name, out):
    source = write(tmp_path / name, spoiled)
    command = ["transform", folder, source, str(tmp_path / out), "--skip-bad", "--shard-rows", "128", "--dim", "8"]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "996 vectors" in said
    assert "4 rows left out" in said
    parts = [pq.read_table(path) for path in sorted((tmp_path / out).glob("shard-*"))] if out == "out" else []
    table = pa.concat_tables(parts) if parts else pq.read_table(tmp_path / out)
    good = [row for row in range(ROWS) if row not in BAD]
    assert table["id"].to_pylist() == [f"d{row}" if name == "in.parquet" else str(row) for row in good]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), "f4"), compressor.transform(spoiled[good], 8))
    lists = (
        sorted((tmp_path / out).glob("_left-out-*.jsonl")) if out == "out" else [tmp_path / f"{out}.left-out.jsonl"]
    )
    left = [json.loads(line) for path in lists for line in path.read_text().splitlines()]
    assert [each["row"] for each in left] == list(BAD)
    assert [each["id"] for each in left] == [f"d{row}" if name == "in.parquet" else None for row in BAD]


def test_rows_are_not_left_out_where_ids_cannot_be_kept(folder, spoiled, tmp_path):
    job = Job(folder, write(tmp_path / "in.npy", spoiled), skip_bad=True)
    with pytest.raises(DataError, match="write parquet with --skip-bad"):
        transform_files(job, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("name", ["in.npy", "in.parquet"])
def test_a_mended_file_keeps_the_finished_shards(folder, compressor, vectors, tmp_path, name):
    broken = vectors.copy()
    broken[700] = np.nan
    job = Job(folder, write(tmp_path / name, broken), shard_rows=100)
    with pytest.raises(BadRows, match="row 700"):
        transform_files(job, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert len(before) == 7
    mended = vectors.copy()
    mended[250] += 1  # a row of a finished shard was changed as well
    write(tmp_path / name, mended)
    transform_files(job, tmp_path / "out")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert [key for key in before if after[key] != before[key]] == [f"shard-000002{(tmp_path / name).suffix}"]
    whole = transform_files(job, tmp_path / "whole")
    for shard in whole.shards:
        assert shard.is_intact(tmp_path / "out")


def test_an_unfinished_transform_is_not_continued_with_other_rows(folder, vectors, tmp_path):
    broken = vectors.copy()
    broken[700] = np.nan
    job = Job(folder, write(tmp_path / "in.npy", broken), shard_rows=100)
    with pytest.raises(BadRows):
        transform_files(job, tmp_path / "out")
    write(tmp_path / "in.npy", vectors[::-1])
    with pytest.raises(DataError, match="begun with another source"):
        transform_files(job, tmp_path / "out")


def test_drift_refuses_bad_rows_outside_its_sample(compressor, vectors, tmp_path):
    many = np.concatenate([vectors] * 6)
    many[5_555] = np.nan
    with pytest.raises(BadRows, match="row 5555 holds NaN"):
        check_drift(compressor, open_vectors(write(tmp_path / "in.npy", many)))


FAULTS = {3: "holds no vector", 40: "lacks a number", 41: "is 2 wide", 77: "lacks an id", 300: "is all zero"}


def faulty(path, vectors):
    """Write rows with every fault that a format can hold; returns the path."""
    rows = [[float(number) for number in row] for row in vectors[:400]]
    rows[3], rows[41], rows[300] = None, [0.5, 0.25], [0.0] * WIDTH
    rows[40][5] = None
    ids = [f"d{row}" for row in range(len(rows))]
    ids[77] = None
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": ids, "vector": rows}), path, row_group_size=150)
    elif path.suffix == ".csv":
        cells = [",".join("" if cell is None else str(cell) for cell in row or []) for row in rows]
        lines = [f"{key or ''},{row}" for key, row in zip(ids, cells, strict=True)]
        path.write_text("\n".join([",".join(["id", *map(str, range(WIDTH))]), *lines]))
    else:
        lines = [json.dumps({"id": key, "embedding": row}) for key, row in zip(ids, rows, strict=True)]
        lines[3] = '{"id": "d3", "error": "rate limit"}'
        path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl"])
def test_rows_that_cannot_be_read_are_listed_with_the_others_and_left_out(folder, compressor, vectors, tmp_path, name):
    source, out = faulty(tmp_path / name, vectors), tmp_path / "out.parquet"
    found = estimate(Plan(Job(folder, source), None)).bad
    assert [(row.file, row.row) for row in found] == [(source, row) for row in FAULTS]
    assert [row.id for row in found if row.row in (40, 300)] == ["d40", "d300"]
    with pytest.raises(BadRows) as caught:
        check_drift(compressor, open_vectors(source))
    assert caught.value.rows == found
    with pytest.raises(DataError, match="4 rows cannot be read"):
        load_vectors(source)
    with pytest.raises(BadRows):
        transform_files(Job(folder, source), tmp_path / "refused")
    assert transform_files(Job(folder, source, skip_bad=True, shard_rows=64), out).rows == 400 - len(FAULTS)
    good = [row for row in range(400) if row not in FAULTS]
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [f"d{row}" for row in good]
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), compressor.transform(vectors[good]), atol=1e-6)
    left = [json.loads(line) for line in (tmp_path / "out.parquet.left-out.jsonl").read_text().splitlines()]
    assert [each["row"] for each in left] == list(FAULTS)


def test_whys_name_what_was_seen(folder, vectors, tmp_path):
    found = estimate(Plan(Job(folder, faulty(tmp_path / "in.parquet", vectors)), None)).bad
    assert all(why in row.why for row, why in zip(found, FAULTS.values(), strict=True))
    found = estimate(Plan(Job(folder, faulty(tmp_path / "in.jsonl", vectors)), None)).bad
    whys = ["line 4: the API answered with an error: rate limit", "line 41.*null", "line 42: 2 wide", "lacks an id"]
    for row, why in zip(found, whys, strict=False):
        assert re.search(why, row.why), (row, why)
    assert [row.id for row in found] == ["d3", "d40", "d41", None, "d300"]


def test_failed_requests_of_a_batch_are_bad_rows(folder, vectors, tmp_path):
    rows = vectors[:400].tolist()
    body = [{"status_code": 200, "body": {"object": "list", "data": [{"embedding": row}]}} for row in rows]
    body[0] = {"status_code": 429, "body": {"error": {"message": "slow down"}}}
    lines = [{"custom_id": f"q{i}", "response": each, "error": None} for i, each in enumerate(body)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (bad,) = estimate(Plan(Job(folder, str(tmp_path / "in.jsonl")), None)).bad
    assert (bad.row, bad.id) == (0, "q0")
    assert "429" in bad.why


def test_a_lost_line_of_several_vectors_is_refused(tmp_path, vectors):
    lines = [json.dumps({"embeddings": vectors[at : at + 5].tolist()}) for at in range(0, 50, 5)]
    lines[3] = lines[3][:-30]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 4 is not JSON"):
        list(open_vectors(tmp_path / "in.jsonl").batches())


def test_rows_of_a_null_vector_at_the_start_tell_no_width(tmp_path, vectors):
    for width in (1, 999):
        rows = [None] * width + vectors[:5].tolist()
        pq.write_table(pa.table({"v": rows}), tmp_path / "in.parquet")
        source = open_vectors(tmp_path / "in.parquet")
        assert source.width == WIDTH
        rest = np.concatenate([batch.rows for batch in source.batches(5, width)])
        np.testing.assert_array_equal(rest, vectors[:5])
    pq.write_table(pa.table({"v": [None] * 1000 + vectors[:5].tolist()}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="row 0 holds no vector"):
        open_vectors(tmp_path / "in.parquet")


@pytest.mark.parametrize("kind", ["Flat", "IDMap,Flat", "IVF4,Flat"])
def test_migrate_leaves_bad_rows_out_of_an_index_and_keeps_the_ids(
    folder, compressor, spoiled, tmp_path, capsys, kind
):
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(WIDTH, kind)
    rows = np.where(np.isfinite(spoiled), spoiled, 0)
    rows[[17, 301, 999]] = 0
    ids = np.arange(ROWS) * (1 if kind == "Flat" else 3)
    index.train(np.delete(rows, list(BAD), 0))
    index.add(rows) if kind == "Flat" else index.add_with_ids(rows, ids)
    faiss.write_index(index, str(tmp_path / "i.faiss"))
    command = ["migrate", folder, str(tmp_path / "i.faiss"), "--out", str(tmp_path / "o.faiss")]
    assert run(command) == 2
    listed = capsys.readouterr().err.splitlines()
    assert "4 rows cannot be used" in listed[-1]
    assert len(listed) == 5
    assert run([*command, "--skip-bad"]) == 0
    migrated = open_vectors(tmp_path / "o.faiss")
    (batch,) = migrated.batches()
    good = [row for row in range(ROWS) if row not in BAD]
    assert batch.ids == [str(ids[row]) for row in good]
    np.testing.assert_allclose(batch.rows, compressor.transform(rows[good], 8), atol=1e-5)
    left = [json.loads(line) for line in (tmp_path / "o.faiss.left-out.jsonl").read_text().splitlines()]
    assert [each["row"] for each in left] == list(BAD)
    assert run(command) == 2  # what is there already is not overwritten
    assert "exists already" in capsys.readouterr().err
    assert run(["migrate", folder, str(tmp_path / "i.faiss"), "--out", str(tmp_path / "o.npy"), "--skip-bad"]) == 2
    assert run(["migrate", folder, str(tmp_path / "i.faiss"), "--in-place", "--skip-bad"]) == 2
    assert "would be lost" in capsys.readouterr().err


def test_migrate_leaves_bad_rows_out_of_files(folder, spoiled, tmp_path, caplog):
    source = write(tmp_path / "in.parquet", spoiled)
    assert run(["migrate", folder, source, "--out", str(tmp_path / "new"), "--skip-bad"]) == 0
    assert "4 rows left out, listed in" in caplog.text
    assert sum(len(pq.read_table(path)) for path in (tmp_path / "new").glob("shard-*")) == ROWS - len(BAD)


def test_migrate_leaves_bad_rows_out_of_a_collection(folder, vectors, tmp_path, capsys):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(tmp_path / "s.db"))
    client.create_collection("docs", dimension=WIDTH, metric_type="IP")
    rows = vectors[:20].copy()
    rows[7] = 0
    client.insert("docs", [{"id": 5 * i, "vector": row.tolist(), "text": f"t{i}"} for i, row in enumerate(rows)])
    store = f"{tmp_path / 's.db'}#docs"
    assert run(["migrate", folder, store, "--out", "small"]) == 2
    assert "row 7 (id 35) is all zero" in capsys.readouterr().err
    assert run(["migrate", folder, store, "--out", "small", "--skip-bad"]) == 0
    found = client.query("small", filter="", output_fields=["id", "text"], limit=100)
    assert [(each["id"], each["text"]) for each in found] == [(5 * i, f"t{i}") for i in range(20) if i != 7]
    assert json.loads((tmp_path / "s.db.small.left-out.jsonl").read_text())["id"] == "35"


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("name", ["out.npy", "out.parquet", "out.safetensors"])
def test_a_name_with_an_ending_becomes_one_file(folder, compressor, vectors, tmp_path, capsys, name, precision):
    source, out = write(tmp_path / "in.npy", vectors), tmp_path / name
    command = ["transform", folder, source, str(out), "--dim", "8", "--precision", precision, "--shard-rows", "300"]
    assert run(command) == 0
    assert capsys.readouterr().out.endswith(f"in {out}\n")
    expected = compressor.transform(vectors, 8, precision=precision)
    if name == "out.npy":
        found = np.load(out)
    elif name == "out.safetensors":
        found = read_safetensors(out, None)["vectors"]
    else:
        found = np.array(pq.read_table(out)["vector"].to_pylist(), expected.dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    kept = {"c", "in.npy", name, *(["out.npy.json"] if name == "out.npy" else [])}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert run(command) == 2  # it is not overwritten
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.npy", "out.parquet", "out.safetensors"])
def test_one_file_is_continued_and_an_interruption_leaves_no_half_of_it(folder, vectors, tmp_path, monkeypatch, name):
    job, out = Job(folder, write(tmp_path / "in.npy", vectors), shard_rows=100), tmp_path / name
    import smec_st.stores.job as module

    real, calls = module.write_shard, []

    def stopping(*arguments):
        calls.append(arguments[3])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        transform_files(job, out)
    assert not out.exists()
    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            transform_files(job, out)  # killed after the file has its name
    transform_files(job, out)
    assert calls == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]
    np.testing.assert_array_equal(load_vectors(out), Compressor.load(folder).transform(vectors))
    assert not list(tmp_path.glob(".*"))


def test_ids_that_a_format_cannot_hold_are_spoken_of(folder, vectors, tmp_path, capsys):
    source = write(tmp_path / "in.parquet", vectors)
    assert run(["transform", folder, source, str(tmp_path / "out.npy")]) == 0
    assert "the ids of the rows were not written; .parquet keeps them" in capsys.readouterr().out
    assert run(["transform", folder, source, str(tmp_path / "out.parquet")]) == 0
    assert "the ids of the rows" not in capsys.readouterr().out
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist()[:2] == ["d0", "d1"]


def test_the_ending_and_the_format_must_agree(folder, vectors, tmp_path, capsys):
    source = write(tmp_path / "in.npy", vectors)
    assert run(["transform", folder, source, str(tmp_path / "out.npy"), "--format", "parquet"]) == 2
    assert "leave the format parquet out" in capsys.readouterr().err
    (tmp_path / "mine.npy").mkdir()
    assert run(["transform", folder, source, str(tmp_path / "mine.npy")]) == 2
    assert run(["transform", folder, source, source]) == 2
    np.testing.assert_array_equal(np.load(source), vectors)


@pytest.mark.parametrize(
    "name", ["out.csv", "out.jsonl", "out.NPY", "out.faiss", "out.npz", "out.parquet.gz", "out.h5"]
)
def test_a_name_of_a_file_that_is_not_written_is_refused(folder, vectors, tmp_path, capsys, name):
    source = write(tmp_path / "in.npy", vectors)
    for command in (["transform", folder, source, str(tmp_path / name)],
                    ["migrate", folder, source, "--out", str(tmp_path / name)]):  # fmt: skip
        assert run(command) == 2
        assert "files are written as .npy, .parquet, .safetensors, not ." in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"c", "in.npy"}


@pytest.mark.parametrize("name", ["out", "docs.v2", "docs-0.1", "docs.2024-01"])
def test_a_name_without_the_ending_of_a_file_becomes_a_folder(folder, vectors, tmp_path, name):
    assert run(["transform", folder, write(tmp_path / "in.npy", vectors), str(tmp_path / name)]) == 0
    assert (tmp_path / name / "_manifest.json").is_file()


# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_bits_do_not_depend_on_batch_shard_or_memory_order(rng, tmp_path, precision):
    rows = rng.normal(size=(3000, 96)).astype(np.float32)
    compressor = Compressor.fit(rows, dims=(48, 24), method="pca")
    compressor.save(tmp_path / "c")
    whole = compressor.transform(rows, 24, precision=precision)
    for start, stop in ((0, 1), (5, 7), (100, 131), (1000, 2025), (2990, 3000)):
        np.testing.assert_array_equal(
            compressor.transform(rows[start:stop], 24, precision=precision), whole[start:stop]
        )
    np.testing.assert_array_equal(compressor.transform(np.asfortranarray(rows), 24, precision=precision), whole)
    np.testing.assert_array_equal(compressor.transform(rows[::-1], 24, precision=precision)[::-1], whole)
    source = write(tmp_path / "in.npy", rows)
    for shard_rows in (7, 1000, 10_000):
        out = tmp_path / f"{shard_rows}.npy"
        transform_files(Job(str(tmp_path / "c"), source, dim=24, precision=precision, shard_rows=shard_rows), out)
        np.testing.assert_array_equal(np.load(out), whole)


def test_a_row_of_extreme_length_does_not_change_its_neighbours(compressor, vectors):
    whole, other = compressor.transform(vectors), vectors.copy()
    other[3] *= 1e-30
    other[4] *= 1e30
    found = compressor.transform(other)
    np.testing.assert_array_equal(np.delete(found, [3, 4], 0), np.delete(whole, [3, 4], 0))
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_hidden_layers_and_codes_do_not_depend_on_the_batch(rng):
    rows = rng.normal(size=(600, 32)).astype(np.float32)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((20, 32), (8, 20))]
    folded = FoldedMap((Layer(weights[0], "gelu"), Layer(weights[1])))
    whole = folded.compress(rows)
    codecs = [
        Binary(np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)),
        Product(rng.normal(size=(4, 256, 2)).astype(np.float32)),
    ]
    for start, stop in ((0, 1), (10, 13), (100, 599)):
        part = folded.compress(rows[start:stop])
        np.testing.assert_array_equal(part, whole[start:stop])
        for codec in codecs:
            np.testing.assert_array_equal(codec.encode(part), codec.encode(whole)[start:stop])


# -- similarity -------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_length(tmp_path, rng):
    """A collection whose relevant documents are found by inner product, and not by cosine: they are long."""
    corpus = rng.normal(size=(200, 32)).astype(np.float32)
    queries = rng.normal(size=(30, 32)).astype(np.float32)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    corpus[:20] *= 5
    best = (queries @ corpus.T).argmax(axis=1)
    folder = tmp_path / "dot"
    (folder / "qrels").mkdir(parents=True)
    np.save(folder / "corpus.npy", corpus)
    np.save(folder / "queries.npy", queries)
    lines = "".join(f"{query}\t{document}\t1\n" for query, document in enumerate(best.tolist()))
    for split in ("train", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def original(rows):
    return next(row.metrics["mrr@10"] for row in rows if row.method == "original")


def test_the_original_is_scored_as_its_model_scores(by_length):
    plain = load_collection(by_length)
    compressor = Compressor.fit(plain.corpus, dims=(8, 4), method="pca")
    assert original(score_compressor(compressor, plain, "test")) < 0.9
    assert original(score_compressor(compressor, load_collection(by_length, similarity="dot"), "test")) == 1
    for side in ("corpus", "queries"):
        (by_length / f"{side}.npy.json").write_text('{"similarity": "dot"}')
    recorded = load_collection(by_length)
    assert recorded.similarity == "dot"
    assert original(score_compressor(compressor, recorded, "test")) == 1
    assert original(score_compressor(compressor, load_collection(by_length, similarity="cosine"), "test")) < 0.9


def test_evaluate_and_fit_say_how_the_original_is_scored(by_length, tmp_path, capsys):
    fit = ["fit", "--data", str(by_length), "--method", "pca", "--dims", "8,4", "--out", str(tmp_path / "m")]
    assert run([*fit, "--similarity", "dot"]) == 2
    said = capsys.readouterr().err
    assert "documents have lengths from 1 to 5, but a fit compares by cosine" in said
    assert run(fit) == 0
    assert "inner product" not in capsys.readouterr().out
    assert run(["evaluate", str(tmp_path / "m"), "--data", str(by_length), "--similarity", "dot"]) == 0
    assert "original: by inner product, as its model scores" in capsys.readouterr().out


def test_unit_vectors_fit_by_dot_as_by_cosine(by_length, tmp_path, capsys):
    for side in ("corpus", "queries"):
        rows = np.load(by_length / f"{side}.npy")
        np.save(by_length / f"{side}.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    fit = ["fit", "--data", str(by_length), "--method", "pca", "--dims", "8,4", "--out", str(tmp_path / "m")]
    assert run([*fit, "--similarity", "dot"]) == 0
    assert Compressor.load(tmp_path / "m").info["backbone"]["similarity"] == "dot"


def test_a_model_that_scores_by_inner_product_keeps_the_lengths(tmp_path, small_collection, monkeypatch):
    from tiny_models import tiny_bert

    monkeypatch.setenv("SMEC_ST_CACHE", str(tmp_path / "cache"))
    model = tiny_bert(tmp_path / "m")
    del model[2]
    data = small_collection(documents=20, queries=20)
    spread = {}
    for similarity in ("dot", "cosine"):
        model.similarity_fn_name = similarity
        model.save_pretrained(str(tmp_path / similarity))
        collection = load_collection(data, model=str(tmp_path / similarity))
        assert collection.similarity == similarity
        spread[similarity] = np.linalg.norm(collection.corpus, axis=1)
    np.testing.assert_allclose(spread["cosine"], 1, atol=1e-5)
    assert (spread["dot"] > 1.5).all()
