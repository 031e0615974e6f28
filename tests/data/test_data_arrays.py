"""Tables of arrays and parquet folders are read with their ids, or refused: a test id per kind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reader_files import IDS, ROWS, V, save_named, write
from smec_st.data import DataError, as_qrels, check_vectors, open_vectors
from smec_st.data.sources import read_all

# -- tables of arrays -------------------------------------------------------------------------------------------------


def vecs(rows, kind):
    head = np.int32(rows.shape[1]).tobytes()
    return b"".join(head + row.astype(kind).tobytes() for row in rows)


def test_fvecs_and_bvecs_are_read(tmp_path):
    path = write(tmp_path, "v.fvecs", vecs(V, "<f4"))
    np.testing.assert_array_equal(read_all(open_vectors(path))[0], V)
    whole = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = write(tmp_path, "v.bvecs", vecs(whole, "u1"))
    np.testing.assert_array_equal(read_all(open_vectors(path, codes="float32"))[0], whole)
    for content in (vecs(V, "<f4")[:-3], b"", vecs(V[:1], "<f4") + vecs(V[:1, :2], "<f4") + b"0" * 8):
        with pytest.raises(DataError, match=r"fvecs"):
            open_vectors(write(tmp_path, "w.fvecs", content))


@pytest.mark.parametrize("form", ["npz", "h5"])
def test_named_arrays_come_with_their_ids(tmp_path, form):
    source = open_vectors(save_named(tmp_path, form, emb=V, ids=np.array(IDS), label=np.arange(3)))
    np.testing.assert_array_equal(read_all(source)[0], V)
    assert source.ids == IDS
    path = save_named(tmp_path, form, train=V, test=V + 1, neighbors=np.arange(5))
    with pytest.raises(DataError, match="test, train; say which one"):
        open_vectors(path)
    np.testing.assert_array_equal(read_all(open_vectors(path, "test"))[0], V + 1)


def test_pickled_and_broken_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", emb=V, texts=np.array(IDS, dtype=object))
    np.testing.assert_array_equal(read_all(open_vectors(tmp_path / "v.npz"))[0], V)
    np.savez(tmp_path / "v.npz", emb=V, ids=np.array(IDS, dtype=object))
    with pytest.raises(DataError, match="not a readable .npz file without pickles"):
        open_vectors(tmp_path / "v.npz")
    for name in ("v.npz", "v.h5"):
        if name == "v.h5":
            pytest.importorskip("h5py")
        with pytest.raises(DataError, match="not a readable"):
            open_vectors(write(tmp_path, name, b"PK nothing"))


# -- parquet ----------------------------------------------------------------------------------------------------------


def part(folder, name, numbers, kind=None, **more):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    column = pa.array([[float(n), 0.5] for n in numbers], kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({"emb": column, **more}), folder / name)


@pytest.mark.parametrize(
    "names",
    [
        ["part.2.parquet", "part.10.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["part-00000-ab12.c000.snappy.parquet", "part-00001-ab12.c000.snappy.parquet"],
        ["year=9/part.0.parquet", "year=10/part.0.parquet"],
    ],
    ids=["dask", "hugging face", "spark", "hive"],
)
def test_a_parquet_folder_is_read_in_natural_order(tmp_path, names):
    part(tmp_path, names[0], [1, 2], tag=pa.nulls(2))
    part(tmp_path, names[1], [3], pa.list_(pa.float32(), 2), tag=["a"])
    (tmp_path / "_SUCCESS").touch()
    part(tmp_path, "_tmp/part.0.parquet", [9])
    source = open_vectors(tmp_path)
    assert read_all(source)[0][:, 0].tolist() == [1, 2, 3]
    assert [batch.rows[0, 0] for batch in source.batches(1, 1)] == [2, 3]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"], "lacks part 1 of 3"),
        (
            ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
            "has the splits data/test, data/t",
        ),
        (["corpus/a.parquet", "queries/a.parquet"], "has the splits corpus, queries"),
        (["_delta_log/a.parquet", "a.parquet"], "is a Delta table"),
    ],
)
def test_a_parquet_folder_that_is_more_or_less_than_one_table_is_refused(tmp_path, names, match):
    for name in names:
        part(tmp_path, name, [1])
    with pytest.raises(DataError, match=match):
        open_vectors(tmp_path)


def test_a_split_of_a_parquet_folder_is_chosen_by_column(tmp_path):
    part(tmp_path, "data/train-00000-of-00001.parquet", [1])
    part(tmp_path, "data/test-00000-of-00001.parquet", [2])
    for column in ("test", "data/test", "test/emb"):
        assert read_all(open_vectors(tmp_path, column))[0][0, 0] == 2


def test_columns_of_matrices_of_one_row_are_vectors(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"emb": datasets.Array2D((1, 4), "float32"), "id": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"emb": V[:, None].tolist(), "id": [7, 8, 9]}, features=features)
    dataset.to_parquet(tmp_path / "v.parquet")
    rows, ids = read_all(open_vectors(tmp_path / "v.parquet"))
    np.testing.assert_array_equal(rows, V)
    assert ids == ["7", "8", "9"]
    pq.write_table(pa.table({"emb": [[[0.5], [0.25]]]}), tmp_path / "w.parquet")
    with pytest.raises(DataError, match="holds several vectors"):
        open_vectors(tmp_path / "w.parquet")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([1.0, 2.0, 3.0]), ["1", "2", "3"]),
        (pa.array(["a", "b", None]), "docid: lacks an id"),
    ],
)
def test_ids_of_parquet(tmp_path, ids, expected):
    pq.write_table(pa.table({"docid": ids, "emb": ROWS}), tmp_path / "v.parquet")
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_all(open_vectors(tmp_path / "v.parquet"))
    else:
        assert read_all(open_vectors(tmp_path / "v.parquet"))[1] == expected


def test_bytes_that_are_no_text_are_no_ids(tmp_path):
    for keys in ([b"a", b"\xff\xfe", b"c"], [bytes(range(16))] * 3):
        pq.write_table(pa.table({"id": keys, "v": ROWS}), tmp_path / "v.parquet")
        with pytest.raises(DataError, match="bytes that are no text"):
            read_all(open_vectors(tmp_path / "v.parquet"))


def test_float64_bytes_are_not_taken_for_twice_as_many_floats(tmp_path):
    single = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
    pq.write_table(pa.table({"embedding": [row.astype("<f8").tobytes() for row in single]}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="no plausible float32"):
        open_vectors(tmp_path / "v.parquet")
    pq.write_table(pa.table({"embedding": [row.tobytes() for row in single]}), tmp_path / "v.parquet")
    np.testing.assert_array_equal(read_all(open_vectors(tmp_path / "v.parquet"))[0], single)


@pytest.mark.parametrize("name", ["url", None, "docid"])
def test_the_index_of_a_pandas_table_is_its_id(tmp_path, name):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"emb": ROWS}, index=pandas.Index(IDS, name=name))
    frame.to_parquet(tmp_path / "v.parquet")
    assert read_all(open_vectors(tmp_path / "v.parquet"))[1] == IDS
    frame.reset_index(drop=True).to_parquet(tmp_path / "v.parquet")
    assert read_all(open_vectors(tmp_path / "v.parquet"))[1] is None


def test_ids_in_hdf5_are_those_of_the_same_group(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for group, ids in (("corpus", IDS), ("queries", ["x", "y", "z"])):
            file[f"{group}/emb"] = V
            file[f"{group}/doc_ids"] = ids
        file["others/emb"] = V
    for group, ids in (("corpus", IDS), ("queries", ["x", "y", "z"]), ("others", None)):
        assert read_all(open_vectors(tmp_path / "v.h5", f"{group}/emb"))[1] == ids


def pandas_store(path, blocks):
    """Write what ``DataFrame.to_hdf`` writes in its fixed format, whose attributes and arrays these are."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        group = file.create_group("df")
        group.attrs.update(pandas_type=np.bytes_("frame"), nblocks=len(blocks), encoding=np.bytes_("UTF-8"))
        group["axis0"] = np.arange(sum(block.shape[1] for block in blocks))
        group["axis1"] = np.array(IDS, dtype="S5")
        for number, block in enumerate(blocks):
            group[f"block{number}_items"], group[f"block{number}_values"] = np.arange(block.shape[1]), block
    return path


def test_a_pandas_store_is_read_with_its_index(tmp_path):
    rows, ids = read_all(open_vectors(pandas_store(tmp_path / "v.h5", [V])))
    np.testing.assert_array_equal(rows, V)
    assert ids == IDS
    with pytest.raises(DataError, match="several kinds of columns"):  # its columns are in two arrays
        open_vectors(pandas_store(tmp_path / "w.h5", [V[:, :3], V[:, 3:].astype(np.float64)]))


def test_arrays_beside_the_vectors_that_may_be_ids_are_told(tmp_path, told):
    np.savez(tmp_path / "v.npz", emb=V, names=np.array(IDS))
    assert read_all(open_vectors(tmp_path / "v.npz"))[1] is None
    assert any("names is left out; ids would be named `ids`" in each for each in told())
    np.savez(tmp_path / "v.npz", emb=V, row_ids=np.array([5, 6, 7]))
    assert read_all(open_vectors(tmp_path / "v.npz"))[1] == ["5", "6", "7"]


def test_whole_numbers_in_fvecs_are_no_vectors(tmp_path):
    rows = b"".join(np.array([4, *row], "<i4").tobytes() for row in np.arange(12).reshape(3, 4))
    with pytest.raises(DataError, match="whole numbers, as an .ivecs file"):
        open_vectors(write(tmp_path, "v.fvecs", rows))


@pytest.mark.parametrize("form", ["npz", "safetensors", "h5"])
def test_ids_of_one_table_are_not_those_of_another(tmp_path, told, form):
    def ids(column, **arrays):
        return read_all(open_vectors(save_named(tmp_path, form, **arrays), column=column))[1]

    keys, other = np.array([7, 8, 9]), np.array([1, 2, 3])
    for query_ids in ("query_ids", "qids"):
        assert ids("corpus", corpus=V, queries=V, **{query_ids: keys}) is None
        assert ids("queries", corpus=V, queries=V, **{query_ids: keys}) == ["7", "8", "9"]
    assert ids("doc_vectors", doc_vectors=V, query_vectors=V, docids=other, query_ids=keys) == ["1", "2", "3"]
    assert ids("query_vectors", doc_vectors=V, query_vectors=V, docids=other, query_ids=keys) == ["7", "8", "9"]
    assert ids("emb", emb=V, queries=V, query_ids=keys) is None
    assert ids("emb", emb=V, query_ids=keys) == ["7", "8", "9"]
    assert ids("corpus", corpus=V, queries=V, ids=keys) == ["7", "8", "9"]
    assert not told()
    assert ids("queries", queries=V, doc_ids=keys) is None  # the relevant documents, perhaps
    assert any("doc_ids is left out" in each for each in told())


@pytest.mark.parametrize("count", [2, 4])
def test_ids_that_belong_to_no_array_of_vectors_are_refused(tmp_path, count):
    np.savez(tmp_path / "v.npz", corpus=V, corpus_ids=np.arange(count), queries=V[:1], query_ids=np.arange(1))
    with pytest.raises(DataError, match=f"corpus_ids has {count} entries, and corpus 3 rows"):
        open_vectors(tmp_path / "v.npz", column="corpus")
    assert read_all(open_vectors(tmp_path / "v.npz", column="queries"))[1] == ["0"]


@pytest.mark.parametrize("name", ["ids", "docnos", "corpus_ids"])
def test_ids_of_a_data_frame_are_a_table_of_one_column(tmp_path, name):
    np.savez(tmp_path / "v.npz", **{"emb": V, name: np.array([[7], [5], [6]])})
    assert read_all(open_vectors(tmp_path / "v.npz"))[1] == ["7", "5", "6"]


def test_ids_that_numpy_wrote_as_floats_are_no_dimension(tmp_path):
    rows = np.random.default_rng(0).standard_normal((40, 6))
    np.savetxt(tmp_path / "v.csv", np.c_[np.arange(1, 41), rows], delimiter=",")
    with pytest.raises(DataError, match="column 1 of 7 holds whole numbers only"):
        open_vectors(tmp_path / "v.csv")
    np.savetxt(tmp_path / "v.csv", np.c_[np.arange(40) % 2, rows], delimiter=",")  # labels
    with pytest.raises(DataError, match="column 1 of 7 holds whole numbers only"):
        open_vectors(tmp_path / "v.csv")
    np.savetxt(tmp_path / "v.csv", np.c_[np.zeros(40), rows], delimiter=",")  # a dead dimension
    assert read_all(open_vectors(tmp_path / "v.csv"))[0].shape == (40, 7)


@pytest.mark.parametrize("names", ["0,1,2,3,4,5", "d0,d1,d2,d3,d4,d5"])
def test_a_header_that_numpy_commented_out_names_all_columns(tmp_path, names):
    rows = np.random.default_rng(0).standard_normal((40, 6))
    np.savetxt(tmp_path / "v.csv", rows, delimiter=",", header=names)
    assert np.array_equal(read_all(open_vectors(tmp_path / "v.csv"))[0], rows.astype(np.float32))


@pytest.mark.parametrize("has_index", [True, False])
def test_a_header_with_a_gap_is_no_row(tmp_path, has_index):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.random.default_rng(0).standard_normal((40, 6)))
    frame.drop(columns=[4]).to_csv(tmp_path / "v.csv", index=has_index)
    with pytest.raises(DataError, match="numbers columns from 0 to 5, but 4 is not there"):
        open_vectors(tmp_path / "v.csv")


def test_ids_in_a_data_frame_are_no_dimension():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.random.default_rng(0).standard_normal((40, 6)))
    assert check_vectors(frame, "corpus").shape == (40, 6)
    frame[2] = 0.0  # a dead dimension
    frame.insert(0, "id", range(100, 140))
    with pytest.raises(DataError, match="the column id of the corpus vectors holds whole numbers only"):
        check_vectors(frame, "corpus")


def test_judgements_in_a_data_frame_are_read_by_their_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"corpus_id": [7, 8, 9], "query_id": [0, 1, 2]})
    for columns in (frame, frame[["query_id", "corpus_id"]]):
        found = as_qrels(columns, 3, 10)
        assert (found.queries.tolist(), found.documents.tolist()) == ([0, 1, 2], [7, 8, 9])
