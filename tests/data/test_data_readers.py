"""What the field publishes is read as it comes, told where it was changed, or refused: a test id per kind."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from reader_files import (
    CODES,
    IDS,
    ROWS,
    WIDE,
    V,
    b64,
    batch_line,
    lines,
    objects,
    openai,
    pinecone,
    points,
    table,
    write,
)
from smec_st.data import DataError, open_vectors
from smec_st.data.sources import read_all

NAMED = [{"dense": row, "title": row[:2]} for row in ROWS]
COHERE = {"id": "5807ee2e", "texts": ["a", "b", "c"], "meta": {"api_version": {"version": "1"}}}
VERTEX = [{"embeddings": {"statistics": {"truncated": False, "token_count": 6}, "values": row}} for row in ROWS]

# Content of v.json -> the ids that come with ROWS.
ANSWERS = {
    "openai": (openai(), None),
    "openai in another order": (openai(order=[2, 0, 1]), None),
    "openai base64": (openai([b64(row, "<f4") for row in WIDE.tolist()]), None),
    "vllm": (openai(id="embd-1", created=1), None),
    "mistral without index": ({**openai(), "data": [{"embedding": row} for row in ROWS], "id": "a"}, None),
    "list of answers": ([openai(ROWS[:2]), openai(ROWS[2:])], None),
    "items of openai's data": (openai()["data"], None),
    "cohere v1": ({**COHERE, "embeddings": ROWS, "response_type": "embeddings_floats"}, None),
    "cohere v2": ({**COHERE, "embeddings": {"float": ROWS}}, None),
    "cohere v2 with nulls": ({**COHERE, "embeddings": {"float": ROWS, "int8": None, "binary": None}}, None),
    "voyage": ({**openai(), "model": "voyage-3", "usage": {"total_tokens": 10}}, None),
    "gemini": ([{"embedding": {"values": row}} for row in ROWS], None),
    "gemini with ids": ([{"id": key, "embedding": {"values": row}} for key, row in zip(IDS, ROWS, strict=True)],
                        IDS),
    "gemini in python": ({"embedding": ROWS}, None),
    "cohere v2 in python": ({**COHERE, "embeddings": {"float_": ROWS, "int8": None}}, None),
    "gemini batch": ({"embeddings": [{"values": row} for row in ROWS]}, None),
    "vertex": ({"predictions": VERTEX, "metadata": {"billableCharacterCount": 11}}, None),
    "ollama embed": ({"model": "all-minilm", "embeddings": ROWS, "total_duration": 14, "prompt_eval_count": 8}, None),
    "embeddings alone": ({"embeddings": ROWS}, None),
    "ollama embeddings": ([{"embedding": row} for row in ROWS], None),
    "chroma get": (
        {"ids": IDS, "embeddings": ROWS, "documents": ["a", "b", "c"], "metadatas": None, "uris": None, "data": None,
         "included": ["embeddings"]}, IDS,
    ),
    "pinecone fetch": ({"vectors": pinecone(), "namespace": "", "usage": {"readUnits": 1}}, IDS),
    "pinecone upsert": ({"vectors": list(pinecone().values()), "namespace": "n"}, IDS),
    "pinecone query": ({"matches": [{**one, "score": 0.5} for one in pinecone().values()], "namespace": ""}, IDS),
    "pinecone inference": (
        {"model": "m", "vector_type": "dense", "data": [{"values": row} for row in ROWS], "usage": {}}, None,
    ),
    "qdrant scroll": ({"result": {"points": points(), "next_page_offset": None}, "status": "ok", "time": 0.1}, IDS),
    "qdrant retrieve": ({"result": points(), "status": "ok", "time": 0.1}, IDS),
    "qdrant named": ({"result": {"points": points([{"dense": row} for row in ROWS])}, "status": "ok"}, IDS),
    "weaviate": ({"objects": [{"class": "D", "id": key, "vector": row} for key, row in zip(IDS, ROWS, strict=True)]},
                 IDS),
    "weaviate named": (
        {"objects": [{"id": key, "vectors": {"default": row}} for key, row in zip(IDS, ROWS, strict=True)]}, IDS,
    ),
    "text-embeddings-inference": (ROWS, None),
    "nomic": ({"embeddings": ROWS, "usage": {"prompt_tokens": 5}, "model": "nomic-embed-text-v1.5"}, None),
    "nomic without model": ({"embeddings": ROWS, "usage": {"prompt_tokens": 5}}, None),
    "jina by type": (
        {**openai(), "data": [{"index": i, "embedding": {"float": row}} for i, row in enumerate(ROWS)]}, None,
    ),
    "titan v2": (
        [{"embedding": row, "embeddingsByType": {"float": row}, "inputTextTokenCount": 5} for row in ROWS], None,
    ),
    "titan by type": ([{"embeddingsByType": {"float": row, "binary": [1, 0]}} for row in ROWS], None),
    "nova": ({"embeddings": [{"embeddingType": "TEXT", "embedding": row} for row in ROWS]}, None),
    "cohere on bedrock": ({**COHERE, "embeddings": {"float": ROWS}, "response_type": "embeddings_by_type"}, None),
    "watsonx": ({"model_id": "m", "results": [{"embedding": row} for row in ROWS], "input_token_count": 3}, None),
    "cloudflare": ({"result": {"shape": [3, 4], "data": ROWS}, "success": True, "errors": []}, None),
    "tensorflow serving": ({"predictions": ROWS}, None),
    "azure ai": ({"id": "x", "object": "list", "model": "m", "data": openai()["data"], "usage": {}}, None),
    "elasticsearch": ([{"_index": "i", "_id": key, "_source": {"embedding": row, "id": "no"}}
                       for key, row in zip(IDS, ROWS, strict=True)], IDS),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_answer_is_read_as_it_came(tmp_path, case):
    content, ids = ANSWERS[case]
    rows, found = read_all(open_vectors(write(tmp_path, "v.json", content)))
    np.testing.assert_array_equal(rows, WIDE if "base64" in case else V)
    assert found == ids


JSON_LINES = {
    "openai batch": (lines(*(batch_line(key, [row]) for key, row in zip(IDS, ROWS, strict=True))), IDS),
    "openai batch of several": (lines(batch_line("a", ROWS[:2]), batch_line("b", ROWS[2:])), ["a/0", "a/1", "b"]),
    "gemini batch file": (
        lines(*({"key": key, "response": {"embedding": {"values": row}}} for key, row in zip(IDS, ROWS, strict=True))),
        IDS,
    ),
    "vertex batch": (lines(*({"instance": {"content": "a"}, "predictions": [p], "status": ""} for p in VERTEX)), None),
    "azure batch": (
        lines(*({"response": {"body": openai([row]), "status_code": 200}, "custom_id": key, "error": None}
                for key, row in zip(IDS, ROWS, strict=True))), IDS,
    ),
    "titan batch": (
        lines(*({"recordId": key, "modelInput": {"inputText": "x"}, "modelOutput": {"embedding": row}}
                for key, row in zip(IDS, ROWS, strict=True))), IDS,
    ),
    "cohere batch on bedrock": (
        lines(*({"recordId": key, "modelInput": {}, "modelOutput": {**COHERE, "embeddings": [row]}}
                for key, row in zip(IDS, ROWS, strict=True))), IDS,
    ),
    "qdrant client": (lines(*points()), IDS),
    "pinecone import": (lines(*pinecone().values()), IDS),
    "tei, one answer per line": (lines(ROWS[:2], ROWS[2:]), None),
    "number ids": (lines(*objects(id=[7, 8.0, "9"], embedding=ROWS)), ["7", "8", "9"]),
    "doc_id": (lines(*objects(doc_id=IDS, embedding=ROWS)), IDS),
    "docid": (lines(*objects(docid=IDS, vector=ROWS)), IDS),
    "ID": (lines(*objects(ID=IDS, text=IDS, embedding=ROWS)), IDS),
    "document_id": (lines(*objects(document_id=IDS, embedding=ROWS)), IDS),
    "id before doc_id": (lines(*objects(doc_id=["a"] * 3, id=IDS, embedding=ROWS)), IDS),
    "index beside": (lines(*objects(index=[2, 0, 1], embedding=ROWS)), ["2", "0", "1"]),
    "data beside": (lines(*objects(data=[[1, 2], [3, 4], [5, 6]], embedding=ROWS)), None),
    "response beside": (lines(*objects(id=IDS, response=["a", "b", "c"], embedding=ROWS)), IDS),
    "error beside": (lines(*objects(error=["x", None, "y"], embedding=ROWS)), None),
    "pgvector text": (lines(*objects(id=IDS, embedding=[str(row) for row in ROWS])), IDS),
    "byte order mark": ("\ufeff" + lines(*ROWS), None),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("case", JSON_LINES)
def test_json_lines_are_read(tmp_path, case, packed):
    content, ids = JSON_LINES[case]
    data = content.encode()
    path = write(tmp_path, "v.jsonl.gz" if packed else "v.jsonl", gzip.compress(data) if packed else data)
    rows, found = read_all(open_vectors(path))
    np.testing.assert_array_equal(rows, V)
    assert found == ids


def test_a_named_field_wins_over_everything_else(tmp_path):
    content = {"model": "m", "data": [{"embedding": ROWS[0]}], "embedding": ROWS[1], "mine": ROWS[2]}
    path = write(tmp_path, "v.json", [content])
    np.testing.assert_array_equal(read_all(open_vectors(path, "mine"))[0], V[2:])
    with pytest.raises(DataError, match="could be embedding or OpenAI"):
        open_vectors(path)


@pytest.mark.parametrize("name", ["dense", "title"])
def test_one_of_several_named_vectors_is_chosen_by_column(tmp_path, name):
    path = write(tmp_path, "v.json", {"result": {"points": points(NAMED)}, "status": "ok"})
    assert read_all(open_vectors(path, name))[0].shape == (3, 4 if name == "dense" else 2)
    records = write(tmp_path, "v.jsonl", lines(*points(NAMED)))
    assert read_all(open_vectors(records, name))[0].shape == (3, 4 if name == "dense" else 2)


def bad_openai(change):
    content = openai()
    change(content["data"])
    return content


REFUSED_JSON = {
    "openai lacks an index": (bad_openai(lambda data: data[1].pop("index")), "should be 0 to 2, without 1"),
    "openai lacks an entry": (bad_openai(lambda data: data.pop(1)), "should be 0 to 1, without 1"),
    "two answers in one": ({**openai(), "data": [*openai()["data"], *openai()["data"]]}, "several were put together"),
    "openai error": ({"error": {"message": "quota", "type": "x"}}, "answered with an error: .*quota"),
    "tei error": ({"error": "overloaded", "error_type": "Overloaded"}, "answered with an error: overloaded"),
    "cohere by types": ({**COHERE, "embeddings": {"float": ROWS, "int8": CODES}}, "holds float, int8; name one"),
    "chroma query": ({"ids": [IDS], "embeddings": [ROWS], "distances": [[0, 1, 2]]}, "no known answer"),
    "chroma without embeddings": ({"ids": IDS, "embeddings": None, "documents": IDS}, "holds no vector"),
    "chroma without ids": ({"ids": None, "embeddings": ROWS, "documents": IDS}, "3 embeddings for no list of ids"),
    "chroma with a null id": ({"ids": ["a", None, "c"], "embeddings": ROWS}, "lacks an id"),
    "chroma of other ids": ({"ids": IDS[:2], "embeddings": ROWS}, "3 embeddings for 2 ids"),
    "qdrant sparse": ({"result": {"points": points([{"indices": [1], "values": [0.5]}] * 3)}, "status": "ok"}, "no"),
    "qdrant several": ({"result": {"points": points(NAMED)}, "status": "ok"}, "holds dense, title; name one"),
    "pinecone without values": ({"matches": [{"id": "a", "score": 1, "values": []}]}, "no known answer"),
    "later entry without vector": ({"result": [points()[0], {"id": "b", "vector": None}]}, "null"),
    "token embeddings": ([[ROWS]], "one of its numbers is a list"),
    "a text beside nested vectors": ({"text": "a", "embeddings": ROWS}, "no known answer"),
    "a text beside token vectors": ({"text": "a", "embedding": ROWS}, "is no vector"),
    "an id beside nested vectors": ({"id": "a", "embeddings": ROWS}, "no known answer"),
    "whole numbers": ({"data": [{"embedding": row, "index": i} for i, row in enumerate(CODES)]}, "whole numbers only"),
    "base64 of int8": (openai([b64(CODES[0] * 8, "i1")]), "no plausible float32"),
    "base64 of bits": (openai([b64(np.packbits(WIDE[0] > 0), "u1") * 1]), "no plausible float32"),
    "true": ([[0.5, True]], "true or false"),
    "null": ([[0.5, None]], "is null"),
    "text": ([["0.5", "1.5"]], "is a text"),
    "too large": ([[0.5, 10**400]], "not a vector of floats"),
    "beyond float32": ([[0.5, 1e300]], "too large for float32"),
    "object of columns": ({"embedding": {"0": ROWS[0]}, "id": {"0": "a"}}, "is no id"),
    "two id names": (objects(id=IDS, _id=IDS, embedding=ROWS), "both id and _id may hold the ids"),
    "first without id": ([{"embedding": ROWS[0]}, {"id": "b", "embedding": ROWS[1]}], "has the id b, but the first"),
    "bool id": (objects(id=[True], embedding=ROWS[:1]), "True is no id"),
    "vertex status": ([{"instance": {}, "predictions": VERTEX[:1], "status": "quota"}], "answered with an error"),
}


@pytest.mark.parametrize("case", REFUSED_JSON)
def test_unclear_json_is_refused_in_one_line(tmp_path, case):
    content, match = REFUSED_JSON[case]
    with pytest.raises(DataError, match=match) as error:
        read_all(open_vectors(write(tmp_path, "v.json", content)))
    assert "\n" not in str(error.value)


def test_a_failed_request_of_a_batch_is_refused(tmp_path):
    content = lines(batch_line("a", ROWS[:1]), batch_line("b", [], 429, {"message": "slow down"}))
    with pytest.raises(DataError, match="line 2: request b failed: 429"):
        read_all(open_vectors(write(tmp_path, "v.jsonl", content)))


def test_deep_json_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="nested too deeply"):
        open_vectors(write(tmp_path, "v.json", "[" * 100_000))


# -- CSV --------------------------------------------------------------------------------------------------------------


TEXTS = [str(row) for row in ROWS]
CSV = {
    "numpy": (table(), None),
    "pandas": (table(["0", "1", "2"], header=["", 0, 1, 2, 3]), ["0", "1", "2"]),
    "pandas without index": (table(header=[0, 1, 2, 3]), None),
    "pandas with ids as index": (table(IDS, header=["", 0, 1, 2, 3]), IDS),
    "pandas with a named index": (table(IDS, header=["doc_id", 0, 1, 2, 3]), IDS),
    "index and id": (table([0, 1, 2], IDS, header=["", "id", "x0", "x1", "x2", "x3"]), IDS),
    "byte order mark": ("\ufeff" + table(IDS, header=["id", "dim_1", "dim_2", "dim_3", "dim_4"]), IDS),
    "label and text beside": (table([5, 6, 7], IDS, header=["label", "ID", "x0", "x1", "x2", "x3"]), IDS),
    "columns in another order": (
        table(header=["x3", "x1", "x2", "x0"], rows=[[r[3], r[1], r[2], r[0]] for r in ROWS]), None,
    ),
    "text in a cell": (table(IDS, header=["id", "embedding"], rows=[[text] for text in TEXTS]), IDS),
    "numpy text in a cell": (
        table(IDS, header=["id", "embedding"], rows=[[t.replace(",", "").replace(" 2.5", "\n 2.5")] for t in TEXTS]),
        IDS,
    ),
    "postgres array": (
        table(IDS, header=["id", "v"], rows=[["{" + ",".join(map(str, row)) + "}"] for row in ROWS]), IDS,
    ),
    "copy csv": (table(IDS, rows=[[text] for text in TEXTS]), IDS),
    "windows lines": (table(IDS, header=["id", 0, 1, 2, 3]).replace("\n", "\r\n"), IDS),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_csv_is_read(tmp_path, case):
    content, ids = CSV[case]
    rows, found = read_all(open_vectors(write(tmp_path, "v.csv", content.encode())))
    np.testing.assert_array_equal(rows, V)
    assert found == ids


def test_copy_of_pgvector_is_read_from_tsv_and_gzip(tmp_path):
    content = "".join(f"{key}\t{json.dumps(row, separators=(',', ':'))}\n" for key, row in zip(IDS, ROWS, strict=True))
    for path in (write(tmp_path, "v.tsv", content), write(tmp_path, "v.tsv.gz", gzip.compress(content.encode()))):
        rows, found = read_all(open_vectors(path))
        np.testing.assert_array_equal(rows, V)
        assert found == IDS


def test_columns_that_are_left_out_are_told(tmp_path, told):
    open_vectors(write(tmp_path, "v.csv", table(["a", "b", "c"], header=["label", "x0", "x1", "x2", "x3"])))
    assert any("the columns label are left out; the vectors are 4 of 5" in message for message in told())


def test_a_prefix_chooses_among_numbered_columns(tmp_path):
    content = table(rows=[[*row, *row[:2]] for row in ROWS], header=["a0", "a1", "a2", "a3", "b0", "b1"])
    path = write(tmp_path, "v.csv", content)
    with pytest.raises(DataError, match=r"a, b; say which column"):
        open_vectors(path)
    assert open_vectors(path, "b").width == 2


REFUSED_CSV = {
    "trailing label": (table(rows=[[*row, i] for i, row in enumerate(ROWS)]), "column 5 of 5 holds whole numbers"),
    "label in pandas' numbers": (
        table(rows=[[*row, i] for i, row in enumerate(ROWS)], header=[0, 1, 2, 3, 4]),
        "column 5 of 5 holds whole",
    ),
    "leading index": (table([0, 1, 2]), "column 1 of 5 holds whole numbers"),
    "leading text id": (table(IDS), "neither a header nor numbers"),
    "whole numbers": (table(rows=CODES), "whole numbers only"),
    "header without numbers": (table(header=["a", "b", "c", "d"]), "has no columns of vectors"),
    "lost dimension": (table(header=["x0", "x1", "x3", "x4"]), "has no columns of vectors"),
    "decimal commas": (table(IDS, header=["id", 0, 1, 2, 3], delimiter=";").replace(".", ","), "not a vector"),
    "semicolons and commas": ("0,5;1,5\n0,5;1,5\n", "neither a header nor numbers"),
    "utf-16": (table().encode("utf-16"), "not readable"),
    "trailing comma": (table(rows=[[*row, ""] for row in ROWS]), "neither a header nor numbers"),
    "header alone": ("id,0,1\n", "no rows below its header"),
    "short row": (table(IDS, header=["id", 0, 1, 2, 3]) + "x,1.5\n", "2 cells, the first line has 5"),
    "empty id": (table(["a", "", "c"], header=["id", 0, 1, 2, 3]), "lacks an id"),
    "empty cell": (table(header=[0, 1, 2, 3], rows=[*ROWS, [0.5, "", 1.5, 0.5]]), "not a vector"),
    "underscore": (table(header=[0, 1], rows=[["0.5", "1_0.5"]]), "not a vector"),
    "cut numpy text": (table(IDS, header=["id", "v"], rows=[["[0.1 0.2 ... 0.3]"]] * 3), "not a vector"),
    "sparse vector": (table(IDS, header=["id", "v"], rows=[["{1:0.5,3:2}/5"]] * 3), "no columns of vectors"),
    "null vector": ('a,"[0.5,1.5]"\nb,\\N\n', "line 2: not a vector"),
    "matrix in a cell": (table(IDS, header=["id", "v"], rows=[["[[0.1, 0.2]]"]] * 3), "not a vector"),
    "two columns of text": (table(rows=[["[0.5]", "[0.5]"]], header=["a", "b"]), "say which column"),
    "unclosed quote": ('id,0,1\n"a,0.5,0.5\n', "not readable|no rows"),
    "bad utf-8": (b"id,0,1\n\xff,0.5,0.5\n", "not readable"),
    "cut gzip": (gzip.compress(table().encode() * 99)[:-20], "not readable"),
}


@pytest.mark.parametrize("case", REFUSED_CSV)
def test_unclear_csv_is_refused_in_one_line(tmp_path, case):
    content, match = REFUSED_CSV[case]
    with pytest.raises(DataError, match=match) as error:
        read_all(open_vectors(write(tmp_path, "v.csv.gz" if "gzip" in case else "v.csv", content)))
    assert "\n" not in str(error.value)


def test_cells_may_be_separated_by_semicolons_tabs_or_bars(tmp_path):
    for mark in ";\t|":
        path = write(tmp_path, "v.csv", table(IDS, header=["id", 0, 1, 2, 3], delimiter=mark))
        rows, ids = read_all(open_vectors(path))
        np.testing.assert_array_equal(rows, V)
        assert ids == IDS


# -- codes ------------------------------------------------------------------------------------------------------------


def stored(kind):
    """The same vectors as codes of a kind, and what they decode to."""
    scaled = np.clip(np.round(WIDE * 40), -128, 127)
    bits = np.packbits(WIDE > 0, axis=1)
    signs = np.where(WIDE > 0, 1, -1)
    return {
        "float32": (scaled.astype(np.int16), scaled),
        "int8": (scaled.astype(np.int8), scaled),
        "uint8": ((scaled + 128).astype(np.uint8), scaled),
        "ubinary": (bits, signs),
        "binary": ((bits.astype(np.int16) - 128).astype(np.int8), signs),
    }[kind]


def write_codes(path, form, codes):
    listed = codes.tolist()
    if form == "npy":
        np.save(path / "v.npy", codes)
    elif form == "npz":
        np.savez(path / "v.npz", v=codes)
    elif form == "safetensors":
        save_file({"v": np.ascontiguousarray(codes)}, path / "v.safetensors")
    elif form == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path / "v.h5", "w") as file:
            file["v"] = codes
    elif form == "parquet":
        pq.write_table(pa.table({"v": listed}), path / "v.parquet")
    elif form == "csv":
        np.savetxt(path / "v.csv", codes, fmt="%d", delimiter=",")
    elif form == "jsonl":
        write(path, "v.jsonl", lines(*listed))
    else:
        texts = [b64(row, codes.dtype.newbyteorder("<")) for row in codes]
        if form == "parquet of base64":
            pq.write_table(pa.table({"embedding": texts}), path / "v.parquet")
        elif form == "parquet of bytes":
            pq.write_table(pa.table({"embedding": [row.tobytes() for row in codes]}), path / "v.parquet")
        else:
            write(path, "v.json", openai(texts))
    return next(found for found in path.iterdir() if found.name.startswith("v."))


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize(
    "form", ["npy", "npz", "safetensors", "h5", "parquet", "csv", "jsonl", "base64", "parquet of base64",
             "parquet of bytes"],
)  # fmt: skip
def test_codes_are_read_when_told_and_refused_otherwise_in_all_formats(tmp_path, form, kind):
    codes, expected = stored(kind)
    if form.endswith(("base64", "bytes")) and kind == "float32":
        codes = expected.astype("<f4")
    path = write_codes(tmp_path, form, codes)
    if codes.dtype.kind != "f":
        with pytest.raises(DataError, match="codes"):
            read_all(open_vectors(path))
    source = open_vectors(path, None, kind)
    assert source.width == 32
    np.testing.assert_array_equal(read_all(source)[0], expected)
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in source.batches(2, 1)]), expected[1:])


def test_cohere_says_itself_what_its_codes_are(tmp_path):
    for kind in ("int8", "uint8", "binary", "ubinary"):
        codes, expected = stored(kind)
        path = write(tmp_path, "v.json", {**COHERE, "embeddings": {kind: codes.tolist()}})
        np.testing.assert_array_equal(read_all(open_vectors(path))[0], expected)
        with pytest.raises(DataError, match=f"says that these are {kind}"):
            open_vectors(path, codes="float32")
    both = write(tmp_path, "v.json", {**COHERE, "embeddings": {"float": WIDE.tolist(), "ubinary": codes.tolist()}})
    np.testing.assert_array_equal(read_all(open_vectors(both, "float"))[0], WIDE)
    np.testing.assert_array_equal(read_all(open_vectors(both, "ubinary"))[0], expected)


@pytest.mark.parametrize(("codes", "values"), [("int8", [0.5, 1]), ("int8", [200, 1]), ("ubinary", [-1, 1])])
def test_numbers_that_are_no_such_codes_are_refused(tmp_path, codes, values):
    with pytest.raises(DataError, match=f"{codes} codes are whole numbers from"):
        open_vectors(write(tmp_path, "v.json", [values]), codes=codes)


def test_unknown_codes_and_codes_of_an_index_are_refused(tmp_path):
    with pytest.raises(DataError, match="codes are float32, int8, uint8, binary, ubinary, got 'int4'"):
        open_vectors(tmp_path / "v.npy", codes="int4")
    with pytest.raises(DataError, match="an index gives floats"):
        open_vectors(write(tmp_path, "v.faiss", "x"), codes="int8")
