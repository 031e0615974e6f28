"""Collections of texts on disk are read; every broken folder gives a one-line error."""

import contextlib
import gzip
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smec_st.data import Collection, DataError, Qrels, load_collection, read_jsonl
from smec_st.system.errors import parse_json


def load(folder):
    return load_collection(folder, folder / "vectors.safetensors")


def write_truncated_safetensors(path):
    save_file({"corpus": np.ones((4, 4), dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])


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


def test_load_collection_reads_a_validation_split_as_dev(small_collection):
    folder = small_collection()
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / "validation.tsv")
    assert sorted(load(folder).qrels) == ["dev", "test", "train"]
    (folder / "qrels" / "dev.tsv").write_text("q0\td0\t1\n")
    with pytest.raises(DataError, match="toy has two dev splits; keep one"):
        load(folder)


def test_load_collection_leaves_out_a_split_of_another_name(small_collection):
    folder = small_collection()
    (folder / "qrels" / "extra.tsv").write_text("q0\td0\t1\n")
    assert sorted(load(folder).qrels) == ["dev", "test", "train"]


def test_judged_rejects_a_split_without_relevant_pairs(rng):
    vectors = rng.normal(size=(1, 4))
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
        (append("corpus.jsonl", '{"_id": '), r"corpus.jsonl, line 301 is not JSON: "),
        (append("corpus.jsonl", '["d300"]'), "corpus.jsonl, line 301: not a JSON object"),
        (append("corpus.jsonl", '{"id": "d300"}'), "the corpus of toy, record 301: lacks `_id`"),
        (append("corpus.jsonl", '{"_id": "d12"}'), "the corpus of toy repeats the id d12"),
        (
            append("queries.jsonl", '{"_id": "q120"}'),
            "120 query vectors for 121 ids in toy: rows must be in the order of the file",
        ),
        (append("qrels/dev.tsv", "q1\td2"), r"dev.tsv, line \d+: expected query-id, corpus-id and score"),
        (append("qrels/dev.tsv", "q1\td2\tgood"), r"dev.tsv, line \d+: expected query-id, corpus-id and score"),
        (cut("corpus", slice(299)), "299 corpus vectors for 300 ids in toy"),
        (
            cut("queries", (slice(None), slice(16))),
            "queries are 16 wide and the corpus 32; both must come from",
        ),
        (put("corpus", (17, 3), np.nan), "corpus vectors hold NaN or infinity in row 17"),
        (put("queries", 4, np.inf), "query vectors hold NaN or infinity in row 4"),
        (put("queries", 9, 0.0), "query vectors are all zero in row 9"),
        (change_vectors(lambda tensors: tensors.pop("queries")), "has the tensors corpus; queries is not among them"),
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
        ({}, r"give either a file of vectors \(--vectors\) or a model"),
        (
            {"vectors": "v.safetensors", "model": "m"},
            r"give either a file of vectors \(--vectors\) or a model",
        ),
        ({"vectors": "corpus.jsonl"}, "a collection's vectors are one file ending in .safetensors, .npz, .h5"),
        ({"vectors": "qrels"}, "no such file: .*corpus.npy"),
    ],
)
def test_load_collection_rejects_an_unclear_source_of_vectors(small_collection, source, match):
    folder = small_collection()
    with pytest.raises(DataError, match=match):
        load_collection(folder, **{option: folder / name for option, name in source.items()})


def test_load_collection_rejects_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(
        DataError, match="is not a known kind of collection; it should hold corpus.jsonl .*corpus.npy and queries.npy"
    ):
        load_collection(tmp_path, tmp_path / "v.safetensors")


def test_load_collection_rejects_a_task_where_there_is_none(small_collection):
    folder = small_collection()
    with pytest.raises(DataError, match="only Fashion-200K has a choice of tasks"):
        load_collection(folder, folder / "vectors.safetensors", task="image-to-text")


def test_load_collection_rejects_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder: .*nowhere"):
        load_collection(tmp_path / "nowhere", tmp_path / "v.safetensors")


def test_read_jsonl_skips_blank_lines_and_counts_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"_id": 1}) + "\n\n  \n" + json.dumps({"_id": 2}) + "\n{\n")
    records = read_jsonl(path)
    assert [next(records)["_id"], next(records)["_id"]] == [1, 2]
    with pytest.raises(DataError, match="line 5 is not JSON"):
        next(records)


def test_load_collection_names_a_line_that_is_not_utf_8(small_collection):
    folder = small_collection()
    with (folder / "corpus.jsonl").open("ab") as file:
        file.write(b'{"_id": "a\xff"}\n')
    with pytest.raises(DataError, match="corpus.jsonl, line 301 is not JSON"):
        load_collection(folder, folder / "vectors.safetensors")


# -- texts that a model embeds ----------------------------------------------------------------------------------------


def write_texts(folder, documents, queries):
    (folder / "qrels").mkdir(parents=True)
    (folder / "qrels" / "test.tsv").write_text("q0\td0\t1\n")
    for name, records in (("corpus", documents), ("queries", queries)):
        letter = "d" if name == "corpus" else "q"
        lines = (json.dumps({"_id": f"{letter}{at}", **record}) + "\n" for at, record in enumerate(records))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize(
    ("documents", "queries", "match"),
    [
        ([{"contents": "a"}], [{"text": "b"}], "corpus of c, record 1 has the fields _id, contents; a document's "
         "text is in `text`, and its title in `title`"),
        ([{"text": "a"}, {"body": "b"}], [{"text": "b"}], "record 2 has the fields _id, body"),
        ([{"text": "a"}], [{"question": "b"}], "queries of c, record 1 has the fields _id, question; a query's text"),
        ([{"text": "a"}], [{"title": "b"}], "queries of c, record 1 has the fields _id, title"),
        ([{"text": ["a", "b"]}], [{"text": "b"}], "record 1: `text` holds a list and no text"),
        ([{"text": ""}, {"text": None}, {"title": " "}], [{"text": "b"}], "all 3 texts of the corpus are empty"),
        ([{"text": "a"}], [{"text": ""}], "the one text of the queries is empty"),
    ],
)  # fmt: skip
def test_texts_that_are_not_found_are_not_embedded(tmp_path, documents, queries, match):
    folder = write_texts(tmp_path / "c", documents, queries)
    with pytest.raises(DataError, match=match):
        load_collection(folder, model="no-model-is-loaded")
    np.savez(tmp_path / "v.npz", corpus=np.eye(4)[: len(documents)], queries=np.eye(4)[: len(queries)])
    assert len(load_collection(folder, tmp_path / "v.npz").corpus) == len(documents)  # no text is needed


def test_some_texts_may_be_empty(tmp_path):
    folder = write_texts(tmp_path / "c", [{"text": ""}, {"title": "a"}], [{"text": "b"}])
    with pytest.raises(DataError, match="cannot load the model"):  # which is the next step
        load_collection(folder, model="no-such/model")


def test_a_fit_on_empty_texts_is_refused():
    from smec_st import Compressor

    with pytest.raises(DataError, match="all 2 texts of the corpus are empty"):
        Compressor.fit(["", " "], model="no-model-is-loaded")


@pytest.mark.parametrize("side", ["corpus", "queries"])
def test_a_file_under_two_names_is_refused(small_collection, side):
    folder = small_collection()
    content = (folder / f"{side}.jsonl").read_bytes()
    (folder / f"{side}.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=rf"has both {side}.jsonl and {side}.jsonl.gz; keep one"):
        load(folder)
    (folder / f"{side}.jsonl").unlink()
    load(folder)


# -- own documents ----------------------------------------------------------------------------------------------------

WIDTH = 8


def write_pair(folder, documents, queries, judged=(), vectors=None):
    """Write a BEIR folder with these records and load it; vectors are random unless given."""
    (folder / "qrels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, records in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [f"{query}\t{document}\t1\n" for query, document in judged]
    (folder / "qrels" / "test.tsv").write_text("".join(lines))
    tables = {"corpus": rng.normal(size=(len(documents), WIDTH)), "queries": rng.normal(size=(len(queries), WIDTH))}
    tables = {name: table.astype(np.float32) for name, table in (vectors or tables).items()}
    save_file(tables, folder / "v.safetensors")
    return load_collection(folder, folder / "v.safetensors")


@pytest.mark.parametrize(
    ("document", "query", "own"),
    [
        ({"text": "why is the sky blue"}, {"text": "why is the sky blue"}, 0),
        ({"title": "sky", "text": "it is blue"}, {"text": "sky it is blue"}, 0),
        ({"title": "sky", "text": " it is blue "}, {"text": "it is blue\n"}, 0),
        ({"text": "why is the sky blue"}, {"text": "how do bees fly"}, -1),
        ({"text": "why is the sky blue"}, {}, -1),
        ({}, {"text": "why is the sky blue"}, -1),
        ({}, {}, -1),
    ],
)
def test_own_document_has_the_id_and_the_text_of_the_query(tmp_path, document, query, own):
    documents = [{"_id": "7", **document}, {"_id": "8", "text": query.get("text")}]
    collection = write_pair(tmp_path / "toy", documents, [{"_id": "7", **query}])
    assert collection.own_document.dtype == np.int64
    assert collection.own_document.tolist() == [own]


@pytest.mark.parametrize(("shift", "own"), [(0.0, 1), (5e-4, 1), (2e-3, -1), (1.0, -1)])
@pytest.mark.parametrize(("document", "query"), [({}, {}), ({"text": "a"}, {}), ({}, {"text": "a"})])
def test_own_document_without_texts_has_the_same_vector(tmp_path, document, query, shift, own):
    corpus = np.eye(WIDTH, dtype=np.float32)[:2]
    queries = 3 * corpus[1:] + 3 * shift * np.eye(WIDTH, dtype=np.float32)[2:3]
    documents = [{"_id": "x"}, {"_id": "1", **document}]
    collection = write_pair(
        tmp_path / "toy", documents, [{"_id": "1", **query}], vectors={"corpus": corpus, "queries": queries}
    )
    assert collection.own_document.tolist() == [own]


def test_own_document_is_not_decided_by_vectors_where_there_are_texts(tmp_path):
    same = np.ones((1, WIDTH), dtype=np.float32)
    documents, queries = [{"_id": "1", "text": "a"}], [{"_id": "1", "text": "b"}]
    collection = write_pair(tmp_path / "toy", documents, queries, vectors={"corpus": same, "queries": same.copy()})
    assert collection.own_document.tolist() == [-1]


def test_judgements_of_a_query_for_its_own_document_are_dropped(tmp_path):
    documents = [{"_id": str(row), "text": f"text {row}"} for row in range(4)]
    queries = [{"_id": "2", "text": "text 2"}, {"_id": "0", "text": "something else"}]
    judged = [("2", "2"), ("2", "1"), ("0", "0"), ("0", "3")]
    collection = write_pair(tmp_path / "toy", documents, queries, judged)
    assert collection.own_document.tolist() == [2, -1]
    assert collection.judged("test").pairs.tolist() == [[0, 1], [1, 0], [1, 3]]


def test_collection_without_own_documents_says_minus_one(small_collection):
    assert load(small_collection()).own_document.tolist() == [-1] * 120


@pytest.mark.parametrize(
    ("own", "match"),
    [
        ([0, 1, 2], r"one whole number per query, shape \(2,\), got int64 of shape \(3,\)"),
        ([0.0, 1.0], "got float64 of shape"),
        ([0, 5], "own documents name row 5; there are 5 documents, and -1 means none"),
        ([-2, 0], "own documents name row -2"),
    ],
)
def test_collection_rejects_own_documents_that_do_not_fit(rng, own, match):
    with pytest.raises(DataError, match=match):
        Collection("toy", rng.normal(size=(5, 3)), rng.normal(size=(2, 3)), [], [], {}, np.array(own))


@pytest.mark.parametrize(
    ("text", "found"), [(r'"\ud83d\ude00"', "\U0001f600"), (r'"\\ud800"', r"\ud800"), ('"a"', "a")]
)
def test_whole_pairs_and_escaped_backslashes_are_text(text, found):
    assert parse_json(text.encode(), "x") == found


def test_an_id_with_half_of_a_surrogate_pair_is_refused_and_a_text_with_one_is_read(small_collection):
    folder = small_collection()
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    for key, refused in (("text", False), ("_id", True)):
        changed = json.dumps({**first, key: "cut within an emoji \ud83d"})
        (folder / "corpus.jsonl").write_text("\n".join([changed, *lines[1:]]) + "\n")
        with pytest.raises(DataError, match="half of a surrogate pair") if refused else contextlib.nullcontext():
            load_collection(folder, folder / "vectors.safetensors")
