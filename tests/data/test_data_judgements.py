"""Judgements, texts, rows and ids are joined by id, counted where they are odd, or refused: a test id per kind."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from reader_files import CODES, ROWS, V, lines, objects, save_named, write
from smec_st.data import DataError, load_collection
from smec_st.data.rows import read_rows

# -- collections ------------------------------------------------------------------------------------------------------

DOCUMENTS = ["d0", "d1", "7"]


def collection(path, judged, name="test.tsv", key="_id", packed=False):
    (path / "qrels").mkdir(parents=True)
    for side, ids in (("corpus", DOCUMENTS), ("queries", ["q0", "q1"])):
        content = lines(*({key: each, "text": f"{side} {each}"} for each in ids))
        write(
            path,
            f"{side}.jsonl.gz" if packed else f"{side}.jsonl",
            gzip.compress(content.encode()) if packed else content,
        )
    if isinstance(judged, pa.Table):
        pq.write_table(judged, path / "qrels" / name)
    else:
        write(path / "qrels", name, judged)
    save_file({"corpus": V, "queries": V[:2]}, path / "v.safetensors")
    return path


def judgements(path, **options):
    qrels = load_collection(path, path / "v.safetensors", **options).qrels["test"]
    return [
        tuple(row) for row in zip(qrels.queries.tolist(), qrels.documents.tolist(), qrels.grades.tolist(), strict=True)
    ]


RIGHT = [(0, 1, 2.0), (1, 2, 1.0)]
HEADED = "score\tcorpus-id\tquery-id\n2\td1\tq0\n1\t7\tq1\n"
QRELS = {
    "beir": ("test.tsv", "query-id\tcorpus-id\tscore\nq0\td1\t2\nq1\t7\t1\n"),
    "header in another order": ("test.tsv", HEADED),
    "trec": ("test.txt", "q0 0 d1 2\nq1 0 7 1\n"),
    "trec with tabs": ("test.tsv", "q0\t0\td1\t2\nq1\t0\t7\t1\n"),
    "trec, Q0 and rounds": ("test.qrels", "q0 Q0 d1 2\nq1 4.5 7 1\n"),
    "csv": ("test.csv", "qid,docid,relevance\nq0,d1,2\nq1,7,1\n"),
    "json lines": ("test.jsonl", lines(*objects(qid=["q0", "q1"], docno=["d1", 7], score=[2, 1]))),
    "parquet": ("test.parquet", pa.table({"query_id": ["q0", "q1"], "doc_id": ["d1", "7"], "score": [2, 1]})),
    "json": ("test.json", json.dumps({"q0": {"d1": 2}, "q1": {"7": 1}})),
    "hub parquet": (
        "test-00000-of-00001.parquet", pa.table({"query-id": ["q0", "q1"], "corpus-id": ["d1", "7"], "score": [2, 1]}),
    ),
    "gzip": ("test.tsv.gz", gzip.compress(HEADED.encode())),
    "byte order mark": ("test.tsv", "\ufeff" + HEADED),
    "ids as floats": ("test.tsv", "q0\td1\t2\nq1\t7.0\t1\n"),
    "windows lines": ("test.tsv", HEADED.replace("\n", "\r\n").encode()),
}  # fmt: skip


@pytest.mark.parametrize("case", QRELS)
def test_judgements_are_read_in_every_format(tmp_path, case):
    name, content = QRELS[case]
    assert judgements(collection(tmp_path / "c", content, name)) == RIGHT


@pytest.mark.parametrize(("key", "packed"), [("id", False), ("doc_id", False), ("_id", True)])
def test_texts_have_ids_of_any_known_name_and_may_be_packed(tmp_path, key, packed):
    assert judgements(collection(tmp_path / "c", QRELS["beir"][1], key=key, packed=packed)) == RIGHT


LOOSE = {
    "unknown document": ("q0\td9\t1", "names 1 id that the corpus lacks: d9. 1 of 3 judgements is left out", RIGHT),
    "unknown query": ("q9\td0\t1", "names 1 id that the queries lack: q9. 1 of 3 judgements is left out", RIGHT),
    "negative": ("q0\td0\t-2", "1 negative grade is read as 0", [(0, 0, 0.0), *RIGHT]),
    "fraction": ("q0\td0\t0.5", "1 grade is a fraction, rounded up", [(0, 0, 1.0), *RIGHT]),
}


@pytest.mark.parametrize("case", LOOSE)
def test_loose_judgements_are_counted_and_told_and_refused_when_strict(tmp_path, told, case):
    line, message, expected = LOOSE[case]
    folder = collection(tmp_path / "c", f"q0\td1\t2\nq1\t7\t1\n{line}\n")
    assert judgements(folder) == expected
    assert any(message in each for each in told())
    with pytest.raises(DataError, match="names 1 id|whole numbers, 0 or more"):
        judgements(folder, strict=True)


def test_pairs_without_grades_are_relevant_and_told(tmp_path, told):
    folder = collection(tmp_path / "c", "query-id\tcorpus-id\nq0\td1\nq1\t7\n")
    assert judgements(folder) == [(0, 1, 1.0), (1, 2, 1.0)]
    assert any("no column of grades" in each for each in told())


REFUSED_QRELS = {
    "a run": ("q0 Q0 d1 1 12.5 bm25\n", "expected query-id, corpus-id and score"),
    "four columns of something": ("q0\td1\tsome text\t2\n", "expected query-id"),
    "unknown header": ("a\tb\tc\nq0\td1\t1\n", "the score is 'c'"),
    "no known id": ("x\ty\t1\n", "names 1 id that the queries lack: x; theirs are q0, q1. No judgement is left"),
    "not a number": ("q0\td1\tnan\n", "has a grade that is nan"),
    "two documents": ("qid\tpid\tdocid\tscore\nq0\td1\td1\t1\n", "pid and docid may be the same"),
    "triples of ids": ("q0\t123456\t7654321\n", "looks like an id, not a grade"),
    "unknown grade": ("query-id\tcorpus-id\tquality\nq0\td1\t1\n", "is a known name of the grade"),
}


@pytest.mark.parametrize("case", REFUSED_QRELS)
def test_unclear_judgements_are_refused(tmp_path, case):
    content, match = REFUSED_QRELS[case]
    with pytest.raises(DataError, match=match):
        judgements(collection(tmp_path / "c", content))


@pytest.mark.parametrize("case", ["json", "json lines", "csv"])
def test_a_file_of_judgements_that_was_cut_is_refused(tmp_path, case):
    name, content = QRELS[case]
    with pytest.raises(DataError, match=f"{name}.gz is not readable"):
        judgements(collection(tmp_path / "c", gzip.compress(content.encode())[:-9], f"{name}.gz"))


def test_two_files_of_one_split_are_refused(tmp_path):
    folder = collection(tmp_path / "c", HEADED)
    write(folder / "qrels", "test.txt", "q0 0 d1 2\n")
    with pytest.raises(DataError, match="has two test splits"):
        judgements(folder)


def test_a_part_of_a_split_that_comes_twice_is_refused(tmp_path):
    folder = collection(tmp_path / "c", "q0\td1\t2\n", "test-00000-of-00002.tsv")
    write(folder / "qrels", "test-00001-of-00002.tsv", "q1\td0\t1\n")
    assert len(judgements(folder)) == 2
    write(folder / "qrels", "test-00000-of-00002.txt", "q0 0 d1 2\n")
    with pytest.raises(DataError, match="has two test splits"):
        judgements(folder)


def vectors_with_ids(path, order, ids=DOCUMENTS):
    path.mkdir()
    given = [ids[i] for i in order]
    pq.write_table(pa.table({"docid": given, "emb": [ROWS[i % 3] for i in order]}), path / "corpus.parquet")
    np.save(path / "queries.npy", V[:2])
    return path


def test_vectors_with_ids_are_joined_to_texts_by_id(tmp_path, told):
    folder = collection(tmp_path / "c", HEADED)
    found = load_collection(folder, vectors_with_ids(tmp_path / "v", [2, 0, 1]))
    np.testing.assert_array_equal(found.corpus, V)
    assert any("the corpus vectors of c are joined by id." in each for each in told())
    more = vectors_with_ids(tmp_path / "w", [2, 0, 1, 3], [*DOCUMENTS, "d9"])
    np.testing.assert_array_equal(load_collection(folder, more).corpus, V)
    assert any("1 of 4 have ids that are not wanted and are left out" in each for each in told())
    with pytest.raises(DataError, match="lack 1 of 3 ids: 7; theirs are d0, d1"):
        load_collection(folder, vectors_with_ids(tmp_path / "x", [0, 1]))
    with pytest.raises(DataError, match="repeat the id d1"):
        load_collection(folder, vectors_with_ids(tmp_path / "y", [0, 1, 1, 2]))


@pytest.mark.parametrize("form", ["npz", "h5"])
def test_a_collection_takes_its_vectors_from_one_file_of_tables(tmp_path, form):
    folder = collection(tmp_path / "c", HEADED)
    path = save_named(tmp_path, form, corpus=V, queries=V[:2])
    np.testing.assert_array_equal(load_collection(folder, path).corpus, V)


def test_a_collection_of_codes_needs_to_be_told(tmp_path):
    folder = collection(tmp_path / "c", HEADED)
    codes = np.array(CODES, dtype=np.int8)
    path = save_named(tmp_path, "npz", corpus=codes, queries=codes[:2])
    with pytest.raises(DataError, match="got whole numbers"):
        load_collection(folder, path)
    np.testing.assert_array_equal(load_collection(folder, path, codes="int8").corpus, codes)


# -- ids and fields of `index` ----------------------------------------------------------------------------------------


def test_rows_keep_ids_and_dates_as_they_are_written(tmp_path):
    content = "doc_id,year,day,price,sold\n00042,2020,2020-01-02,1.5,true\n7,2021,2021-01-02,2,false\n"
    ids, fields = read_rows(write(tmp_path, "r.csv", content), ["year", "day", "price", "sold"], 2)
    assert ids == ["00042", "7"]
    assert fields == {
        "year": [2020, 2021], "day": ["2020-01-02", "2021-01-02"], "price": [1.5, 2.0], "sold": [True, False],
    }  # fmt: skip
    content = lines(*objects(ID=["00042", "7"], day=["2020-01-02 10:00:00", "x"]))
    ids, fields = read_rows(write(tmp_path, "r.jsonl", content), ["day"], 2)
    assert (ids, fields) == (["00042", "7"], {"day": ["2020-01-02 10:00:00", "x"]})


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (["1500030069010692296", "7"], [1500030069010692296, 7]),
        (["9223372036854775807", "0"], [9223372036854775807, 0]),
        (["9223372036854775808", "7"], ["9223372036854775808", "7"]),  # no index holds it as a number
        (["0.70", "0.7"], ["0.70", "0.7"]),
        (["2e71", "2e719"], ["2e71", "2e719"]),
        (["true", "false"], ["true", "false"]),
        (["-5", "7"], ["-5", "7"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),
        (["1\u0663", "7"], ["1\u0663", "7"]),
    ],
)
def test_ids_are_the_text_of_their_cells(tmp_path, cells, ids):
    assert read_rows(write(tmp_path, "r.csv", "id\n" + "\n".join(cells) + "\n"), [], 2) == (ids, {})
    assert (
        read_rows(write(tmp_path, "r.csv", "id,n\n" + ",1\n".join(cells) + ",1\n"), ["n"], 2, cells[::-1])[0]
        == (ids[::-1])
    )


def test_ids_that_a_float_column_wrote_are_joined_as_whole_numbers(tmp_path):
    path = write(tmp_path, "r.csv", "id,year\n2.0,2\n1.0,1\n")
    assert read_rows(path, ["year"], 2, ["1", "2"]) == ([1, 2], {"year": [1, 2]})


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1500030069010692296", "-3"], [1500030069010692296, -3]),
        (["9223372036854775808", "3"], ["9223372036854775808", "3"]),
        (["100000000000000000000", ""], ["100000000000000000000", ""]),
        (["1500030069010692296", "1.5"], ["1500030069010692296", "1.5"]),  # a float would be another number
        (["1690000000.123456789", "1.5"], ["1690000000.123456789", "1.5"]),
        (["0.70", "1e5"], [0.7, 1e5]),
        (["1.000000000000000056e-01", "0.30000000000000004"], [0.1, 0.30000000000000004]),  # as numpy.savetxt writes
        (["2e719", "1"], ["2e719", "1"]),
        (["1e-719", "1"], ["1e-719", "1"]),
        (["1e99999999999999999999", "1e-99999999999999999999"], ["1e99999999999999999999", "1e-99999999999999999999"]),
        (["12", ""], [12, None]),
    ],
)
def test_fields_are_numbers_only_if_nothing_is_lost(tmp_path, cells, values):
    path = write(tmp_path, "r.csv", "id,n\n" + "".join(f"k{at},{cell}\n" for at, cell in enumerate(cells)))
    (found,) = read_rows(path, ["n"], 2)[1].values()
    assert (found, list(map(type, found))) == (values, list(map(type, values)))


def test_whole_numbers_above_64_bits_are_texts_in_every_format(tmp_path):
    content = lines(*objects(id=[1 << 63, 7], n=[1 << 64, None], small=[1, 2]))
    assert read_rows(write(tmp_path, "r.jsonl", content), ["n", "small"], 2) == (
        [str(1 << 63), "7"], {"n": [str(1 << 64), None], "small": [1, 2]},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"row 0: the id 1\.5\d*e\+18 is a float, whose last digits are lost"):
        read_rows(write(tmp_path, "r.jsonl", lines(*objects(id=[1500030069010692296.0, 7.0]))), [], 2)


def test_fields_may_be_separated_by_semicolons(tmp_path):
    path = write(tmp_path, "r.csv", "\ufeffid;lang\nd 0;en\nd 1;de, at\n")
    assert read_rows(path, ["lang"], 2, None) == (["d 0", "d 1"], {"lang": ["en", "de, at"]})


def test_rows_are_joined_to_vectors_by_id(tmp_path, told):
    path = write(tmp_path, "r.csv", "id,year\nb,2\na,1\nc,3\n")
    assert read_rows(path, ["year"], 2, ["a", "b"]) == (["a", "b"], {"year": [1, 2]})
    assert any("1 of 3 have ids that are not wanted" in each for each in told())
    with pytest.raises(DataError, match="lack 1 of 2 ids: z"):
        read_rows(path, [], 2, ["a", "z"])
    assert read_rows(None, [], 2, ["1", "2"]) == ([1, 2], {})
    assert read_rows(None, [], 2, ["1", "02"]) == (["1", "02"], {})
    assert read_rows(write(tmp_path, "r.csv", "year\n1\n2\n"), ["year"], 2, ["a", "b"]) == (
        ["a", "b"],
        {"year": [1, 2]},
    )
    assert any("has no column of ids among year" in each for each in told())


@pytest.mark.parametrize("form", ["parquet", "jsonl", "faiss"])
def test_index_finds_documents_under_the_ids_of_the_file(tmp_path, monkeypatch, capsys, form):
    faiss = pytest.importorskip("faiss")
    from smec_st import Compressor
    from smec_st.cli import run

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    Compressor.fit(vectors, dims=(4, 2), method="pca").save("small")
    keys = [str(n) for n in range(100, 160)] if form == "faiss" else [f"0{n}" for n in range(60)]
    if form == "parquet":
        pq.write_table(pa.table({"document_id": keys, "emb": vectors.tolist()}), "v.parquet")
    elif form == "jsonl":
        write(tmp_path, "v.jsonl", lines(*objects(docid=keys, embedding=vectors.tolist())))
    else:
        index = faiss.IndexIDMap(faiss.IndexFlatIP(8))
        index.add_with_ids(vectors, np.arange(100, 160))
        faiss.write_index(index, "v.faiss")
    np.save("q.npy", vectors[:3])
    assert run(["index", "small", "--vectors", f"v.{form}", "--out", "i", "--head", "flat"]) == 0
    assert run(["search", "i", "--queries", "q.npy", "--k", "1", "--json", "hits.json"]) == 0
    hits = json.loads((tmp_path / "hits.json").read_text())
    assert [str(row[0]["id"]) for row in hits] == keys[:3]


def test_settings_in_yaml_know_numbers_with_an_exponent(tmp_path):
    from smec_st.fitting.config import read_settings

    path = write(tmp_path, "c.yaml", "learning_rate: 1e-3\nother: 2E+5\nname: 1e\nwhole: 10\n")
    assert read_settings(path) == {"learning_rate": 0.001, "other": 2e5, "name": "1e", "whole": 10}


def test_a_model_that_gives_int8_is_cast(tmp_path):
    import torch

    from smec_st.data.embedding import embed
    from tiny_models import tiny_bert

    class Rounded(torch.nn.Module):
        def forward(self, features):
            scaled = torch.round(torch.tanh(features["sentence_embedding"]) * 127)
            return {**features, "sentence_embedding": scaled.to(torch.int8)}

    model = tiny_bert(tmp_path)
    model.append(Rounded())
    codes = model.encode_document(["a b", "c"])
    assert codes.dtype == np.int8
    rows = embed(model, ["a b", "c"], "document")
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, codes / np.linalg.norm(codes.astype(float), axis=1, keepdims=True), rtol=1e-5)
