"""What the field publishes is read as it comes, told where it was changed, or refused: a test id per kind."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from smec_st.data import DataError, load_collection, open_vectors
from smec_st.data.rows import read_rows
from smec_st.data.sources import read_all
from smec_st.system import errors as notices

ROWS = [[0.5, -0.25, 0.125, 1.5], [1.0, 2.5, -3.0, 0.75], [-0.5, 0.0, 0.25, 2.0]]
V = np.array(ROWS, dtype=np.float32)
IDS = ["d0", "00042", "d2"]
CODES = [[12, -3, 127, -128], [1, 2, 3, 4], [-1, 5, 0, 7]]
WIDE = np.random.default_rng(3).normal(size=(3, 32)).astype(np.float32)


@pytest.fixture
def told(caplog):
    """The notices of the test."""
    notices.tell.cache_clear()
    caplog.set_level(logging.WARNING, logger="smec_st")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "smec_st"]


def b64(row, kind):
    return base64.b64encode(np.asarray(row, dtype=kind).tobytes()).decode()


def write(path, name, content):
    if isinstance(content, bytes):
        (path / name).write_bytes(content)
    elif isinstance(content, str):
        (path / name).write_text(content, encoding="utf-8")
    else:
        (path / name).write_text(json.dumps(content))
    return path / name


def lines(*values):
    return "\n".join(json.dumps(value) for value in values)


def openai(rows=ROWS, order=None, **more):
    order = range(len(rows)) if order is None else order
    data = [{"object": "embedding", "index": i, "embedding": rows[i]} for i in order]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage, **more}


def batch_line(key, rows, status=200, error=None):
    body = openai(rows) if error is None else {"error": error}
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "batch_req_1", "custom_id": key, "response": response, "error": None}


def points(rows=ROWS):
    return [{"id": key, "payload": {"id": "no"}, "vector": row} for key, row in zip(IDS, rows, strict=True)]


def pinecone(rows=ROWS):
    return {key: {"id": key, "values": row, "metadata": {"id": 5}} for key, row in zip(IDS, rows, strict=True)}


def objects(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


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
    "a text beside token vectors": ({"text": "a", "embedding": ROWS}, "no known answer"),
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
    with pytest.raises(DataError, match="not JSON"):
        open_vectors(write(tmp_path, "v.json", "[" * 100_000))


# -- CSV --------------------------------------------------------------------------------------------------------------


def table(*columns, header=None, rows=ROWS, delimiter=","):
    """CSV of columns of texts and the vectors."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    if header is not None:
        writer.writerow(header)
    for i, row in enumerate(rows):
        writer.writerow([*(column[i] for column in columns), *row])
    return file.getvalue()


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


def save_named(path, form, **arrays):
    if form == "npz":
        np.savez(path / "v.npz", **arrays)
        return path / "v.npz"
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "v.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array.tolist() if array.dtype.kind == "U" else array
    return path / "v.h5"


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


def test_cells_may_be_separated_by_semicolons_tabs_or_bars(tmp_path):
    for mark in ";\t|":
        path = write(tmp_path, "v.csv", table(IDS, header=["id", 0, 1, 2, 3], delimiter=mark))
        rows, ids = read_all(open_vectors(path))
        np.testing.assert_array_equal(rows, V)
        assert ids == IDS


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


def test_two_files_of_one_split_are_refused(tmp_path):
    folder = collection(tmp_path / "c", HEADED)
    write(folder / "qrels", "test.txt", "q0 0 d1 2\n")
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
