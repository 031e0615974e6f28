"""Vectors are read, checked and numbered; every bad file gives a one-line error."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from smec_st.data import DataError, EncodedTable, VectorTable, as_numpy, check_vectors, load_vectors, unit_rows
from tiny_models import tiny_bert


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(6, 4)).astype(np.float32)


def test_check_vectors_copies_nothing(vectors):
    assert check_vectors(vectors, "corpus") is vectors


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(
    ("value", "rows", "match"),
    [
        (np.nan, [3], "corpus vectors hold NaN or infinity in row 3. Remove"),
        (np.inf, [3], "corpus vectors hold NaN or infinity in row 3. Remove"),
        (-np.inf, [0], "corpus vectors hold NaN or infinity in row 0. Remove"),
        (0.0, [5], r"corpus vectors are all zero in row 5, so they have no direction"),
    ],
)
def test_check_vectors_names_a_bad_row(vectors, value, rows, match, chunk):
    vectors[rows] = value
    with pytest.raises(DataError, match=match):
        check_vectors(vectors, "corpus", chunk=chunk)


@pytest.mark.parametrize(
    ("rows", "match"), [([1, 4], "in rows 1, 4. Remove"), ([0, 1, 2, 3, 5], "in rows 0, 1, 2 and 2 more. Remove")]
)
def test_check_vectors_names_a_few_of_many_bad_rows(vectors, rows, match):
    vectors[rows, 2] = np.nan
    with pytest.raises(DataError, match=match):
        check_vectors(vectors, "query")


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (np.ones(3), r"must be a table \(rows, width\), not empty, got shape \(3,\)"),
        (np.ones((2, 3, 4)), r"got shape \(2, 3, 4\)"),
        (np.ones((0, 3)), r"got shape \(0, 3\)"),
        (np.ones((3, 0)), r"got shape \(3, 0\)"),
        (np.ones((2, 3), dtype=np.int64), "must be floats, got int64"),
        ([["a"]], "must be floats, got <U1"),
    ],
)
def test_check_vectors_rejects_anything_but_a_table_of_floats(table, match):
    with pytest.raises(DataError, match=match):
        check_vectors(table, "corpus")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (torch.float32, np.float32),
        (torch.float16, np.float16),
        (torch.float64, np.float64),
        (torch.bfloat16, np.float32),
    ],
)
def test_as_numpy_keeps_values_and_type_of_tensors(vectors, given, dtype):
    tensor = torch.from_numpy(vectors).to(given).requires_grad_()
    array = as_numpy(tensor)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy())


def test_unit_rows_have_length_one_and_the_same_direction(vectors):
    rows = unit_rows(vectors.astype(np.float64))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows * np.linalg.norm(vectors, axis=1, keepdims=True), vectors, rtol=1e-5)


def test_load_vectors_reads_npy_without_copying_it_to_memory(tmp_path, vectors):
    np.save(tmp_path / "v.npy", vectors)
    loaded = load_vectors(tmp_path / "v.npy")
    assert isinstance(loaded, np.memmap)
    np.testing.assert_array_equal(loaded, vectors)


@pytest.mark.parametrize("name", [None, "corpus"])
def test_load_vectors_reads_safetensors(tmp_path, vectors, name):
    save_file({"corpus": vectors}, tmp_path / "v.safetensors")
    np.testing.assert_array_equal(load_vectors(tmp_path / "v.safetensors", name), vectors)


def test_load_vectors_picks_a_tensor_by_name(tmp_path, vectors):
    save_file({"corpus": vectors, "queries": vectors + 1}, tmp_path / "v.safetensors")
    np.testing.assert_array_equal(load_vectors(tmp_path / "v.safetensors", "queries"), vectors + 1)


def test_load_vectors_reads_bfloat16(tmp_path, vectors):
    half = torch.from_numpy(vectors).bfloat16()
    save_torch_file({"corpus": half}, tmp_path / "v.safetensors")
    np.testing.assert_array_equal(load_vectors(tmp_path / "v.safetensors"), half.float().numpy())


def write_truncated_safetensors(path):
    save_file({"corpus": np.ones((4, 4), dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])


def write_truncated_npy(path):
    np.save(path, np.ones((4, 4), dtype=np.float32))
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("file", "write", "match"),
    [
        ("a.npy", lambda path: None, "no such file: .*a.npy"),
        ("a.safetensors", lambda path: None, "no such file: .*a.safetensors"),
        ("a.npy", lambda path: path.mkdir(), "no such file"),
        ("a.npy", lambda path: path.write_bytes(b""), "a.npy is not a readable .npy file"),
        ("a.npy", lambda path: path.write_bytes(b"not numpy"), "a.npy is not a readable .npy file"),
        ("a.npy", write_truncated_npy, "a.npy is not a readable .npy file"),
        ("a.npy", lambda path: np.save(path, np.array([{"a": 1}], dtype=object)), "a.npy is not a readable .npy file"),
        ("a.safetensors", write_truncated_safetensors, r"not a readable safetensors file \(truncated\?\)"),
        ("a.safetensors", lambda path: path.write_bytes(b""), r"not a readable safetensors file"),
        ("a.txt", lambda path: path.write_text("1 2"), "read from files ending in .*, got .txt"),
        ("a", lambda path: path.write_text("1 2"), "read from files ending in .*, got no ending"),
    ],
)
def test_load_vectors_rejects_a_bad_file(tmp_path, file, write, match):
    write(tmp_path / file)
    with pytest.raises(DataError, match=match):
        load_vectors(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (None, "has the tensors corpus, queries; say which one is meant"),
        ("docs", "has the tensors corpus, queries; docs is not among them"),
    ],
)
def test_load_vectors_rejects_an_unclear_tensor(tmp_path, vectors, name, match):
    save_file({"corpus": vectors, "queries": vectors}, tmp_path / "v.safetensors")
    with pytest.raises(DataError, match=match):
        load_vectors(tmp_path / "v.safetensors", name)


def test_unit_rows_keeps_the_direction_of_very_long_and_very_short_rows(rng):
    rows = rng.normal(size=(4, 8)).astype(np.float32)
    scaled = (rows * np.array([[1e-30], [1e30], [1e-8], [1.0]])).astype(np.float32)
    assert np.allclose(unit_rows(scaled), unit_rows(rows), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_vector_table_gives_the_same_rows_in_memory_and_memory_mapped(tmp_path, rng, dtype):
    corpus, queries = rng.normal(size=(9, 4)).astype(dtype), rng.normal(size=(5, 4)).astype(dtype)
    np.save(tmp_path / "corpus.npy", corpus)
    np.save(tmp_path / "queries.npy", queries)
    mapped = (load_vectors(tmp_path / "corpus.npy"), load_vectors(tmp_path / "queries.npy"))
    rows = torch.tensor([13, 0, 8, 9, 0, 4])
    expected = unit_rows(np.concatenate([corpus, queries]))[rows.numpy()]
    inside, outside = VectorTable(corpus, queries)[rows], VectorTable(*mapped, in_memory_bytes=0)[rows]
    assert inside.dtype == outside.dtype == torch.float32
    np.testing.assert_array_equal(inside.numpy(), expected)
    np.testing.assert_allclose(outside.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_vector_table_takes_half_precision_tensors(vectors, dtype, in_memory_bytes):
    half = torch.from_numpy(vectors).to(dtype)
    table = VectorTable(half, half[:2], in_memory_bytes=in_memory_bytes)
    expected = torch.nn.functional.normalize(half.float(), dim=1)
    torch.testing.assert_close(table[torch.arange(8)], torch.cat([expected, expected[:2]]))


def test_vector_table_numbers_queries_after_documents(vectors):
    table = VectorTable(vectors, vectors[:2] * 3)
    assert (len(table), table.width, table.corpus_size, table.query_size) == (8, 4, 6, 2)
    ids = table.query_ids(np.array([1, 0]))
    assert ids.tolist() == [7, 6]
    torch.testing.assert_close(table[torch.from_numpy(ids)], table[torch.tensor([1, 0])])


@pytest.mark.parametrize("queries", [None, np.zeros((0, 4), dtype=np.float32)])
@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 20])
def test_vector_table_works_without_queries(vectors, queries, in_memory_bytes):
    table = VectorTable(vectors, queries, in_memory_bytes=in_memory_bytes)
    assert (len(table), table.query_size) == (6, 0)
    np.testing.assert_allclose(table[torch.arange(6)].numpy(), unit_rows(vectors), rtol=1e-6)


@pytest.mark.parametrize(
    ("corpus", "queries", "match"),
    [
        (np.eye(4), np.eye(3), "queries are 3 wide and the corpus 4; both must come from the same model"),
        (np.eye(4), np.zeros((2, 4)), "query vectors are all zero in rows 0, 1"),
        (np.full((2, 4), np.nan), np.eye(4), "corpus vectors hold NaN or infinity in rows 0, 1"),
    ],
)
def test_vector_table_rejects_what_does_not_fit(corpus, queries, match):
    with pytest.raises(DataError, match=match):
        VectorTable(corpus, queries)


@pytest.mark.parametrize("in_memory_bytes", [0, 1 << 20])
def test_vector_table_knows_the_document_that_each_row_is(vectors, in_memory_bytes):
    table = VectorTable(vectors, vectors[:3], np.array([4, -1, 0]), in_memory_bytes=in_memory_bytes)
    own = table.own(torch.tensor([8, 2, 7, 6, 5]))
    assert own.dtype == torch.int64
    assert own.tolist() == [0, 2, -1, 4, 5]


def test_vector_table_without_own_documents_knows_its_documents_only(vectors):
    assert VectorTable(vectors, vectors[:2]).own(torch.arange(8)).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert VectorTable(vectors).own(torch.arange(6)).tolist() == [0, 1, 2, 3, 4, 5]


def test_vector_table_rejects_own_documents_that_do_not_fit(vectors):
    with pytest.raises(DataError, match="own documents name row 6; there are 6 documents"):
        VectorTable(vectors, vectors[:1], np.array([6]))


def test_encoded_table_numbers_rows_as_a_vector_table_without_being_one(tmp_path, vectors):
    backbone = tiny_bert(tmp_path)
    encoded = EncodedTable(backbone, ["a", "b", "c"], ["b", "d"], np.array([1, -1]))
    plain = VectorTable(vectors[:3], vectors[:2], np.array([1, -1]))
    assert not isinstance(encoded, VectorTable)
    assert (len(encoded), encoded.corpus_size, encoded.query_size) == (len(plain), 3, 2)
    assert encoded.own(torch.arange(5)).tolist() == plain.own(torch.arange(5)).tolist()
    assert encoded.query_ids(np.array([1, 0])).tolist() == plain.query_ids(np.array([1, 0])).tolist()
    assert encoded[torch.arange(5)].shape == (5, encoded.width)
