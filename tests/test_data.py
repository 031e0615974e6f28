"""Loading, checking and numbering: what comes out of good files, and one clear line for each bad one."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from smec_st.data import (
    Collection,
    DataError,
    Qrels,
    VectorTable,
    as_numpy,
    check_vectors,
    load_collection,
    load_vectors,
    read_jsonl,
    unit_rows,
)


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def qrels():
    judged = {"q0": {"d1": 2, "d0": 1}, "q1": {"d2": 0}, "q3": {"d2": 1}, "q2": {"d0": 3, "d3": 0}}
    return Qrels.from_dict(judged, ["q0", "q1", "q2", "q3"], ["d0", "d1", "d2", "d3"])


def load(folder):
    return load_collection(folder, folder / "vectors.safetensors")


# -- vectors ----------------------------------------------------------------------------------------------------------


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
def test_check_vectors_rejects_what_is_no_table_of_floats(table, match):
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
        ("a.txt", lambda path: path.write_text("1 2"), "read from .safetensors or .npy files, not .txt"),
        ("a", lambda path: path.write_text("1 2"), "read from .safetensors or .npy files, not this"),
    ],
)
def test_load_vectors_rejects_a_bad_file(tmp_path, file, write, match):
    write(tmp_path / file)
    with pytest.raises(DataError, match=match):
        load_vectors(tmp_path / file)


@pytest.mark.parametrize(
    ("name", "match"),
    [(None, "holds corpus, queries; say which one is meant"), ("docs", "lacks the tensor docs; it holds corpus, que")],
)
def test_load_vectors_rejects_an_unclear_tensor(tmp_path, vectors, name, match):
    save_file({"corpus": vectors, "queries": vectors}, tmp_path / "v.safetensors")
    with pytest.raises(DataError, match=match):
        load_vectors(tmp_path / "v.safetensors", name)


# -- one row numbering ------------------------------------------------------------------------------------------------


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


def test_vector_table_numbers_queries_behind_documents(vectors):
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


# -- judgements -------------------------------------------------------------------------------------------------------


def test_qrels_from_dict_are_sorted_by_query_then_document(qrels):
    assert qrels.queries.tolist() == [0, 0, 1, 2, 2, 3]
    assert qrels.documents.tolist() == [0, 1, 2, 0, 3, 2]
    assert qrels.grades.tolist() == [1, 2, 0, 3, 0, 1]
    assert (qrels.queries.dtype, qrels.documents.dtype, qrels.grades.dtype) == (np.int64, np.int64, np.float32)
    assert len(qrels) == 6


def test_qrels_pairs_are_the_relevant_ones(qrels):
    assert qrels.pairs.tolist() == [[0, 0], [0, 1], [2, 0], [3, 2]]


def test_qrels_relevant_by_query_leaves_out_queries_without_relevant_documents(qrels):
    assert qrels.relevant_by_query() == {0: {0: 1.0, 1: 2.0}, 2: {0: 3.0}, 3: {2: 1.0}}


def test_qrels_of_queries_keeps_all_judgements_of_these(qrels):
    part = qrels.of_queries([2, 1, 99])
    assert (part.queries.tolist(), part.documents.tolist()) == ([1, 2, 2], [2, 0, 3])


def test_qrels_from_an_empty_dict_hold_nothing():
    empty = Qrels.from_dict({}, ["q"], ["d"])
    assert len(empty) == 0
    assert empty.pairs.shape == (0, 2)
    assert empty.relevant_by_query() == {}


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.25, 10), (0.5, 20), (1.0, 40)])
def test_qrels_split_parts_queries(rng, share, held):
    whole = Qrels(rng.permutation(np.repeat(np.arange(40), 3)), rng.integers(0, 9, 120), np.ones(120))
    kept, out = whole.split(share, seed=1)
    assert len(np.unique(out.queries)) == held
    assert sorted(set(kept.queries.tolist()) | set(out.queries.tolist())) == list(range(40))
    assert not set(kept.queries.tolist()) & set(out.queries.tolist())
    assert len(kept) + len(out) == len(whole)


def test_qrels_split_depends_on_the_seed_alone(rng):
    whole = Qrels(np.arange(40), rng.integers(0, 9, 40), np.ones(40))
    assert whole.split(0.3, seed=1)[1].queries.tolist() == whole.split(0.3, seed=1)[1].queries.tolist()
    assert whole.split(0.3, seed=1)[1].queries.tolist() != whole.split(0.3, seed=2)[1].queries.tolist()


@pytest.mark.parametrize("grade", [0.5, -1, float("nan")])
def test_qrels_reject_grades_that_are_no_whole_numbers(grade):
    with pytest.raises(DataError, match="relevance grades must be whole numbers, 0 or more"):
        Qrels.from_dict({"q": {"d": grade}}, ["q"], ["d"])


@pytest.mark.parametrize(
    ("judged", "match"),
    [
        ({"q9": {"d0": 1}}, "qrels names 1 ids that the queries lack: q9"),
        ({"q0": {"d9": 1, "d8": 1}}, "qrels names 2 ids that the corpus lacks: d8, d9"),
        ({"q0": {f"x{i}": 1 for i in range(5)}}, "names 5 ids that the corpus lacks: x0, x1, x2 and 2 more"),
    ],
)
def test_qrels_reject_unknown_ids(judged, match):
    with pytest.raises(DataError, match=match):
        Qrels.from_dict(judged, ["q0"], ["d0"])


# -- collections ------------------------------------------------------------------------------------------------------


def test_load_collection_reads_ids_vectors_and_splits(small_collection):
    folder = small_collection()
    collection = load(folder)
    stored = load_file(folder / "vectors.safetensors")
    assert collection.name == "toy"
    assert (collection.corpus_ids[7], collection.query_ids[7]) == ("d7", "q7")
    np.testing.assert_array_equal(collection.corpus, stored["corpus"])
    np.testing.assert_array_equal(collection.queries, stored["queries"])
    queries = [set(collection.judged(split).queries.tolist()) for split in ("train", "dev", "test")]
    assert [len(part) for part in queries] == [72, 18, 30]
    assert set.union(*queries) == set(range(120))


def test_load_collection_reads_qrels_by_row(small_collection):
    folder = small_collection()
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq5\td17\t2\nq5\td3\t0\nq2\td0\t1\n")
    dev = load(folder).qrels["dev"]
    assert (dev.queries.tolist(), dev.documents.tolist(), dev.grades.tolist()) == ([2, 5, 5], [0, 3, 17], [1, 0, 2])


@pytest.mark.parametrize("header", ["query-id\tcorpus-id\tscore\n", ""])
def test_load_collection_reads_qrels_with_and_without_header(small_collection, header):
    folder = small_collection()
    (folder / "qrels" / "test.tsv").write_text(f"{header}q0\td0\t1\n\nq1\td1\t1\n")
    assert load(folder).qrels["test"].pairs.tolist() == [[0, 0], [1, 1]]


def test_load_collection_reads_a_folder_of_npy_files(small_collection):
    folder = small_collection()
    for name, table in load_file(folder / "vectors.safetensors").items():
        np.save(folder / f"{name}.npy", table)
    collection = load_collection(folder, folder)
    assert isinstance(collection.corpus, np.memmap)
    np.testing.assert_array_equal(collection.corpus, load(folder).corpus)


def test_load_collection_leaves_out_absent_splits(small_collection):
    folder = small_collection()
    (folder / "qrels" / "dev.tsv").unlink()
    collection = load(folder)
    assert sorted(collection.qrels) == ["test", "train"]
    with pytest.raises(DataError, match="toy has no dev split; it has test, train"):
        collection.judged("dev")


def test_judged_rejects_a_split_without_relevant_pairs(vectors):
    qrels = {"dev": Qrels.from_dict({"q": {"d": 0}}, ["q"], ["d"])}
    with pytest.raises(DataError, match="the dev split of toy holds no relevant pair"):
        Collection("toy", vectors, vectors, ["d"], ["q"], qrels).judged("dev")


def append(file, line):
    return lambda folder: (folder / file).write_text((folder / file).read_text() + line + "\n")


def change_vectors(change):
    def apply(folder):
        tensors = load_file(folder / "vectors.safetensors")
        change(tensors)
        save_file(tensors, folder / "vectors.safetensors")

    return apply


def put(name, row, value):
    return change_vectors(lambda tensors: tensors[name].__setitem__(row, value))


def cut(name, key):
    return change_vectors(lambda tensors: tensors.update({name: np.ascontiguousarray(tensors[name][key])}))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda folder: (folder / "corpus.jsonl").unlink(), "no such file: .*corpus.jsonl"),
        (lambda folder: (folder / "queries.jsonl").unlink(), "no such file: .*queries.jsonl"),
        (lambda folder: (folder / "vectors.safetensors").unlink(), "no such file: .*vectors.safetensors"),
        (append("corpus.jsonl", '{"_id": '), r"corpus.jsonl, line 301: not JSON \("),
        (append("corpus.jsonl", '["d300"]'), "corpus.jsonl, line 301: not a JSON object"),
        (append("corpus.jsonl", '{"id": "d300"}'), "corpus.jsonl, record 301: lacks `_id`"),
        (append("corpus.jsonl", '{"_id": "d12"}'), "corpus.jsonl repeats the id d12"),
        (
            append("queries.jsonl", '{"_id": "q120"}'),
            "120 query vectors for 121 ids in toy: rows must follow the file",
        ),
        (append("qrels/dev.tsv", "q1\td2"), r"dev.tsv, line \d+: expected query-id, corpus-id and score"),
        (append("qrels/dev.tsv", "q1\td2\tgood"), r"dev.tsv, line \d+: expected query-id, corpus-id and score"),
        (append("qrels/dev.tsv", "q1\td2\t0.5"), "relevance grades must be whole numbers"),
        (append("qrels/dev.tsv", "q1\td900\t1"), "dev.tsv names 1 ids that the corpus lacks: d900"),
        (append("qrels/dev.tsv", "q900\td1\t1"), "dev.tsv names 1 ids that the queries lack: q900"),
        (cut("corpus", slice(299)), "299 corpus vectors for 300 ids in toy"),
        (cut("queries", (slice(None), slice(16))), "queries are 16 wide and the corpus 32; use one model for both"),
        (put("corpus", (17, 3), np.nan), "corpus vectors hold NaN or infinity in row 17"),
        (put("queries", 4, np.inf), "query vectors hold NaN or infinity in row 4"),
        (put("queries", 9, 0.0), "query vectors are all zero in row 9"),
        (change_vectors(lambda tensors: tensors.pop("queries")), "lacks the tensor queries; it holds corpus"),
        (
            lambda folder: write_truncated_safetensors(folder / "vectors.safetensors"),
            "not a readable safetensors file",
        ),
    ],
)
def test_load_collection_rejects_spoilt_files(small_collection, spoil, match):
    folder = small_collection()
    spoil(folder)
    with pytest.raises(DataError, match=match):
        load(folder)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({}, "give either a file of vectors or a model that makes them"),
        ({"vectors": "v.safetensors", "model": "m"}, "give either a file of vectors or a model that makes them"),
        ({"vectors": "corpus.jsonl"}, "a collection's vectors are one .safetensors file or a folder of .npy files"),
        ({"vectors": "qrels"}, "no such file: .*corpus.npy"),
    ],
)
def test_load_collection_rejects_an_unclear_source_of_vectors(small_collection, source, match):
    folder = small_collection()
    with pytest.raises(DataError, match=match):
        load_collection(folder, **{option: folder / name for option, name in source.items()})


def test_load_collection_rejects_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder: .*nowhere"):
        load_collection(tmp_path / "nowhere", tmp_path / "v.safetensors")


def test_read_jsonl_skips_blank_lines_and_counts_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"_id": 1}) + "\n\n  \n" + json.dumps({"_id": 2}) + "\n{\n")
    records = read_jsonl(path)
    assert [next(records)["_id"], next(records)["_id"]] == [1, 2]
    with pytest.raises(DataError, match="line 5: not JSON"):
        next(records)


def test_unit_rows_keeps_the_direction_of_very_long_and_very_short_rows(rng):
    rows = rng.normal(size=(4, 8)).astype(np.float32)
    scaled = (rows * np.array([[1e-30], [1e30], [1e-8], [1.0]])).astype(np.float32)
    assert np.allclose(unit_rows(scaled), unit_rows(rows), atol=1e-6)


def test_qrels_merge_a_judgement_given_twice_and_refuse_a_contradiction():
    assert len(Qrels([0, 0, 1], [5, 5, 5], [1, 1, 1])) == 2
    with pytest.raises(DataError, match="twice, with different grades"):
        Qrels([0, 0], [5, 5], [1, 2])


def test_qrels_refuse_an_infinite_grade_and_repeated_ids():
    with pytest.raises(DataError, match="whole numbers"):
        Qrels([0], [0], [np.inf])
    with pytest.raises(DataError, match="must not repeat"):
        Qrels.from_dict({"q": {"d": 1}}, ["q"], ["d", "d"])


def test_load_collection_names_a_line_that_is_not_utf_8(small_collection):
    folder = small_collection()
    with (folder / "corpus.jsonl").open("ab") as file:
        file.write(b'{"_id": "a\xff"}\n')
    with pytest.raises(DataError, match="corpus.jsonl, line 301: not JSON"):
        load_collection(folder, folder / "vectors.safetensors")
