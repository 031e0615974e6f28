"""Every source of vectors can be read in batches from any row, and every broken source gives a clear error."""

from __future__ import annotations

import base64
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from safetensors.numpy import save_file

from smec_st.data import DataError, load_vectors, open_vectors
from smec_st.data.safetensors import Safetensors
from smec_st.data.sources import of_dataset, read_all

faiss = pytest.importorskip("faiss")
ROWS, WIDTH = 23, 6
IDS = [f"d{i}" for i in range(ROWS)]


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(ROWS, WIDTH)).astype(np.float32)


def write_npy(path, vectors):
    np.save(path / "v.npy", vectors)
    (path / "v.npy.json").write_text('{"model": "m"}')
    return path / "v.npy"


def write_safetensors(path, vectors):
    save_file({"corpus": vectors}, path / "v.safetensors", {"model": "m"})
    return path / "v.safetensors"


def table_of(vectors, kind=None):
    kind = kind or pa.list_(pa.float32())
    columns = {"id": pa.array(IDS), "text": pa.array(IDS), "vector": pa.array(vectors.tolist(), kind)}
    return pa.table(columns).replace_schema_metadata({"smec_st": '{"model": "m"}'})


def write_parquet(path, vectors):
    pq.write_table(table_of(vectors), path / "v.parquet", row_group_size=4)
    return path / "v.parquet"


def write_parquet_folder(path, vectors):
    (path / "v").mkdir()
    table = table_of(vectors, pa.list_(pa.float32(), WIDTH))
    for part, start in enumerate(range(0, ROWS, 10)):
        pq.write_table(table.slice(start, 10), path / "v" / f"part-{part}.parquet")
    return path / "v"


def write_dataset(path, vectors):
    Dataset.from_dict({"_id": IDS, "embedding": vectors}).save_to_disk(str(path / "v"))
    return path / "v"


def write_jsonl_of_lists(path, vectors):
    (path / "v.jsonl").write_text("\n".join(json.dumps(row.tolist()) for row in vectors))
    return path / "v.jsonl"


def write_jsonl_of_objects(path, vectors):
    lines = [
        json.dumps({"id": i, "model": "m", "embedding": row.tolist()}) for i, row in zip(IDS, vectors, strict=True)
    ]
    (path / "v.jsonl").write_text("\n".join(lines) + "\n\n")
    return path / "v.jsonl"


def entry(index, row, coded):
    value = base64.b64encode(row.astype("<f4").tobytes()).decode() if coded else row.tolist()
    return {"object": "embedding", "index": index, "embedding": value}


def write_openai(path, vectors, coded=False):
    answers = []
    for start in range(0, ROWS, 5):
        data = [entry(i, row, coded) for i, row in enumerate(vectors[start : start + 5])]
        answers.append({"object": "list", "data": data[::-1], "model": "m", "usage": {"total_tokens": 1}})
    (path / "v.jsonl").write_text("\n".join(map(json.dumps, answers)))
    return path / "v.jsonl"


def write_openai_base64(path, vectors):
    return write_openai(path, vectors, coded=True)


def write_openai_one_file(path, vectors):
    data = [entry(i, row, False) for i, row in enumerate(vectors)]
    (path / "v.json").write_text(json.dumps({"object": "list", "data": data, "model": "m"}))
    return path / "v.json"


def write_openai_batch(path, vectors):
    bodies = [{"data": [entry(0, row, False)], "model": "m"} for row in vectors]
    lines = [{"custom_id": i, "error": None, "response": {"body": body}} for i, body in zip(IDS, bodies, strict=True)]
    (path / "v.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path / "v.jsonl"


def write_csv(path, vectors):
    head = ",".join(["id", *(f"x{i}" for i in range(WIDTH))])
    rows = [",".join([i, *map(repr, row.tolist())]) for i, row in zip(IDS, vectors, strict=True)]
    (path / "v.csv").write_text("\n".join([head, *rows]))
    return path / "v.csv"


def write_bare_csv(path, vectors):
    np.savetxt(path / "v.csv", vectors, delimiter=",")
    return path / "v.csv"


def write_faiss_flat(path, vectors):
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors)
    faiss.write_index(index, str(path / "v.faiss"))
    return path / "v.faiss"


def write_faiss_ids(path, vectors):
    index = faiss.IndexIDMap(faiss.IndexFlatIP(WIDTH))
    index.add_with_ids(vectors, np.arange(ROWS) + 100)
    faiss.write_index(index, str(path / "v.index"))
    return path / "v.index"


def write_faiss_ivf(path, vectors):
    index = faiss.index_factory(WIDTH, "IVF2,Flat")
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(path / "v.faiss"))
    return path / "v.faiss"


def write_milvus(path, vectors):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(path / "v.db"))
    schema = client.create_schema()
    schema.add_field("key", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=WIDTH)
    client.create_collection("docs", schema=schema)
    client.insert("docs", [{"key": i, "vector": row.tolist()} for i, row in enumerate(vectors)])
    client.flush("docs")
    client.close()
    (path / "v.db.json").write_text('{"model": "m"}')
    return f"{path / 'v.db'}#docs"


WRITERS = [
    write_npy, write_safetensors, write_parquet, write_parquet_folder, write_dataset, write_jsonl_of_lists,
    write_jsonl_of_objects, write_openai, write_openai_base64, write_openai_one_file, write_openai_batch, write_csv,
    write_bare_csv, write_faiss_flat, write_faiss_ids, write_faiss_ivf, write_milvus,
]  # fmt: skip
WITH_IDS = {"write_parquet", "write_parquet_folder", "write_dataset", "write_jsonl_of_objects", "write_openai_batch",
            "write_csv", "write_faiss_ids", "write_milvus"}  # fmt: skip
WITHOUT_MODEL = {"write_dataset", "write_jsonl_of_lists", "write_csv", "write_bare_csv", "write_faiss_flat",
                 "write_faiss_ids", "write_faiss_ivf"}  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_source_gives_rows_ids_and_model_in_batches_from_any_row_on(tmp_path, vectors, write):
    source = open_vectors(write(tmp_path, vectors))
    assert source.width == WIDTH
    assert source.rows in (ROWS, None)
    assert source.record.get("model") == (None if write.__name__ in WITHOUT_MODEL else "m")
    for start in (0, 3, 8, ROWS - 1, ROWS):
        parts = list(source.batches(size=4, start=start))
        assert [part.start for part in parts] == [
            start + sum(len(p.rows) for p in parts[:i]) for i in range(len(parts))
        ]
        assert all(1 <= len(part.rows) <= 4 for part in parts)
        got = np.concatenate([np.zeros((0, WIDTH)), *(part.rows for part in parts)])
        np.testing.assert_allclose(got, vectors[start:], rtol=1e-6)
        ids = [key for part in parts for key in part.ids or ()]
        if write.__name__ not in WITH_IDS:
            assert ids == []
        elif write in (write_faiss_ids, write_milvus):
            assert ids == [str(i + (100 if write is write_faiss_ids else 0)) for i in range(start, ROWS)]
        else:
            assert ids == IDS[start:]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_load_vectors_reads_every_source(tmp_path, vectors, write):
    np.testing.assert_allclose(load_vectors(write(tmp_path, vectors)), vectors, rtol=1e-6)


def test_arrays_are_mapped_not_read(tmp_path, vectors):
    for write in (write_npy, write_safetensors):
        assert isinstance(read_all(open_vectors(write(tmp_path, vectors)))[0], np.memmap)


def test_a_dataset_in_memory_and_one_with_splits(tmp_path, vectors):
    dataset = Dataset.from_dict({"id": IDS, "a": vectors, "b": 2 * vectors})
    np.testing.assert_allclose(read_all(of_dataset(dataset, "b"))[0], 2 * vectors)
    DatasetDict({"train": dataset, "test": dataset.select(range(5))}).save_to_disk(str(tmp_path / "d"))
    assert open_vectors(tmp_path / "d", "test/b").rows == 5
    with pytest.raises(DataError, match="has the splits test, train; name one"):
        open_vectors(tmp_path / "d", "a")
    with pytest.raises(DataError, match="has the columns of vectors .* a, b; say which column"):
        open_vectors(tmp_path / "d", "train/")


def text(name, content):
    def write(path, vectors):
        (path / name).write_text(content)
        return path / name

    return write


def parquet(column):
    def write(path, vectors):
        pq.write_table(pa.table({"vector": column}), path / "v.parquet")
        return path / "v.parquet"

    return write


BAD = {
    "missing": (lambda p, v: p / "no.npy", "no such file"),
    "missing milvus": (lambda p, v: f"{p}/no.db#docs", "no such file"),
    "unknown": (text("v.bin", "x"), "got .bin"),
    "empty folder": (lambda p, v: p, "neither parquet files nor a saved dataset"),
    "no lines": (text("v.jsonl", "\n"), "has no rows"),
    "broken line": (text("v.jsonl", "[1.0, 2.0]\n[1.0,"), "line 2 is not JSON"),
    "other width": (text("v.jsonl", "[1.0, 2.0]\n[1.0]"), "line 2: 1 wide, the first is 2"),
    "words": (text("v.jsonl", '["a", "b"]'), "line 1: not a vector of floats"),
    "bad base64": (text("v.jsonl", '{"embedding": "@@@"}'), "line 1: not a vector of floats"),
    "no vector": (text("v.jsonl", '{"text": "a"}'), "line 1: holds no `embedding`"),
    "number": (text("v.jsonl", "3"), "line 1: neither a vector nor an object"),
    "api error": (
        text("v.jsonl", '{"custom_id": "a", "error": {"message": "quota"}}'),
        "answered with an error: .*quota",
    ),
    "two models": (
        text("v.jsonl", '{"model": "a", "embedding": [1.0]}\n{"model": "b", "embedding": [1.0]}'),
        "line 2: made by b, the first by a; do not mix them",
    ),
    "lost id": (text("v.jsonl", '{"id": 1, "embedding": [1.0]}\n[1.0]'), "line 2: lacks an id"),
    "csv words": (text("v.csv", "1.5,2\n3.5,x"), "line 2: not a vector"),
    "csv cut": (text("v.csv", "1.5,2.5\n3.5"), "line 2: 1 wide"),
    "not parquet": (text("v.parquet", "PAR1"), "not readable as parquet"),
    "no list": (parquet(pa.array([1.0])), "has no columns of vectors"),
    "null row": (parquet(pa.array([[1.0], None])), "row 1 holds no vector"),
    "null number": (parquet(pa.array([[1.0], [None]])), "lacks a number"),
    "ragged": (parquet(pa.array([[1.0, 2.0], [1.0]])), "row 1 is 1 wide, the first is 2"),
    "not faiss": (text("v.faiss", "x"), "not a readable FAISS index"),
    "whole numbers": (
        lambda p, v: np.save(p / "v.npy", np.ones((2, 2), int)) or p / "v.npy",
        r"must be floats, got whole numbers \(int64\)",
    ),
    "one row": (lambda p, v: np.save(p / "v.npy", v[0]) or p / "v.npy", r"must hold a table .* got shape \(6,\)"),
    "bad record": (
        lambda p, v: (p / "v.npy.json").write_text("[") and write_npy_alone(p, v),
        "v.npy.json is not JSON",
    ),
}


def write_npy_alone(path, vectors):
    np.save(path / "v.npy", vectors)
    return path / "v.npy"


@pytest.mark.parametrize("case", BAD)
def test_broken_sources_raise_an_error_of_one_line(tmp_path, vectors, case):
    write, match = BAD[case]
    with pytest.raises(DataError, match=match) as error:
        read_all(open_vectors(write(tmp_path, vectors)))
    assert "\n" not in str(error.value)


def header(content):
    data = json.dumps(content).encode()
    return len(data).to_bytes(8, "little") + data


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}", header([]), header({"a": 1}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"0000",
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}),
        header({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}) + b"0000",
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + b"0000",
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"00000",
    ],
)  # fmt: skip
def test_a_hostile_safetensors_file_is_refused(tmp_path, data):
    (tmp_path / "v.safetensors").write_bytes(data)
    with pytest.raises(DataError, match="not a readable safetensors file"):
        Safetensors.open(tmp_path / "v.safetensors")


# -- collections of vectors alone -------------------------------------------------------------------------------------


def write_sides(path, vectors, query_model="text-embedding-3-small"):
    folder = path / "api"
    (folder / "qrels").mkdir(parents=True)
    write_parquet(folder, vectors).rename(folder / "corpus.parquet")
    table = pq.read_table(folder / "corpus.parquet").replace_schema_metadata({"model": "text-embedding-3-small"})
    pq.write_table(table, folder / "corpus.parquet")
    items = [{"id": f"q{i}", "model": query_model, "embedding": row.tolist()} for i, row in enumerate(vectors[:9])]
    (folder / "queries.json").write_text(json.dumps(items))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\n")
    return folder


def test_a_collection_needs_no_text(tmp_path, vectors):
    from smec_st.data import load_collection

    collection = load_collection(write_sides(tmp_path, vectors))
    assert collection.corpus_ids == IDS
    assert collection.query_ids == [f"q{i}" for i in range(9)]
    assert collection.backbone == {"model": "text-embedding-3-small"}
    np.testing.assert_array_equal(collection.qrels["test"].pairs, [[1, 1], [2, 3]])
    np.testing.assert_allclose(collection.queries, vectors[:9], rtol=1e-6)


def test_vectors_of_another_model_replace_those_of_a_folder(tmp_path, vectors):
    """As a bridge needs it; rows are joined by the ids of the folder."""
    from smec_st.data import load_collection

    folder, other = write_sides(tmp_path, vectors), tmp_path / "other"
    other.mkdir()
    np.save(other / "corpus.npy", 2 * vectors)
    np.save(other / "queries.npy", -vectors[:9])
    collection = load_collection(folder, other)
    assert collection.corpus_ids == IDS
    np.testing.assert_array_equal(collection.corpus, 2 * vectors)
    np.testing.assert_array_equal(collection.queries, -vectors[:9])
    assert len(collection.qrels["test"].pairs) == 2


def test_a_collection_of_two_models_is_refused(tmp_path, vectors):
    from smec_st.data import load_collection

    with pytest.raises(DataError, match="the corpus was made by text-embedding-3-small and the queries by other"):
        load_collection(write_sides(tmp_path, vectors, "other"))
    with pytest.raises(DataError, match="holds its own vectors"):
        load_collection(write_sides(tmp_path / "b", vectors), model="m")


def test_the_command_line_needs_no_text_and_refuses_another_model(tmp_path, vectors, capsys):
    from smec_st.cli import run
    from smec_st.compressor import Compressor

    folder = write_sides(tmp_path, vectors)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    out = str(tmp_path / "out")
    assert run(["fit", "--data", str(folder), "--dims", "4,2", "--method", "pca", "--out", out]) == 0
    assert Compressor.load(out).info["backbone"]["model"] == "text-embedding-3-small"
    np.save(tmp_path / "new.npy", vectors)
    (tmp_path / "new.npy.json").write_text('{"model": "text-embedding-3-large"}')
    capsys.readouterr()
    assert run(["transform", out, str(tmp_path / "new.npy"), str(tmp_path / "t")]) == 2
    assert "another embedding space: the model is 'text-embedding-3-large'" in capsys.readouterr().err
