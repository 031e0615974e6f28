"""Generated files of every kind, whole and damaged: a reader agrees with the slow reference reader or refuses."""

from __future__ import annotations

import base64
import copy
import csv
import gzip
import io
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

import slow_reader
from smec_st.data import DataError, open_vectors
from smec_st.data.codes import CODES
from smec_st.data.judgements import read_qrels
from smec_st.data.sources import read_all

h5py = pytest.importorskip("h5py")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
EXAMPLES = {"json": 7000, "csv": 7000, "arrays": 3000, "parquet": 1500, "qrels": 2500}
assert sum(EXAMPLES.values()) >= 20_000

FLOATS = st.floats(-100, 100, width=32).filter(lambda number: number == 0 or abs(number) > 1e-6)
WORDS = st.sampled_from(["a", "00042", "7", "x y", "Ä", "4.5", "true", "d-1", "[b", ""])
ID_NAMES = st.sampled_from(["id", "_id", "docid", "doc_id", "ID", "custom_id", "document-id", "index", "text", "url"])
CODE = st.sampled_from([None, None, None, *CODES])


OUTCOMES: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def enough_is_read():
    """A reader that refuses everything is never wrong, so a fifth of the files must be read."""
    OUTCOMES.clear()
    yield
    assert OUTCOMES["read"] > OUTCOMES.total() / 5, OUTCOMES


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def fuzz(kind):
    """The settings of one kind of file: the same examples in every run."""
    quiet = [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ]
    return settings(
        max_examples=EXAMPLES[kind], deadline=None, derandomize=True, database=None, suppress_health_check=quiet
    )


@st.composite
def tables(draw, whole=False):
    """A table of floats or of codes, as lists."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    limits = draw(st.sampled_from([(-128, 127), (0, 255), (-130, 260)]))
    number = st.integers(*limits) if whole else FLOATS
    return [[draw(number) for _ in range(width)] for _ in range(rows)]


def attempt(read):
    """What a reader returns, or None and its message of one line if it refuses; any other error goes through."""
    try:
        found = read(), ""
    except DataError as error:
        found = None, str(error)
    OUTCOMES["read" if found[0] is not None else "refused"] += 1
    return found


def truth(read, found, raw):
    """What the slow reader returns; it must not find unclear what was read."""
    try:
        return read()
    except slow_reader.Unclear:
        raise AssertionError(f"read {found} from {raw[:600]!r}") from None


def check(path, expected, codes=None):
    """Compare what the package reads with what the slow reader reads."""

    def read():
        source = open_vectors(path, None, codes)
        rows, ids = read_all(source)
        return rows, ids, source.width, list(source.batches(2, 1))

    found, message = attempt(read)
    assert "\n" not in message
    if found is None:
        return
    rows, ids, width, rest = found
    right, right_ids = truth(expected, (rows.tolist(), ids, codes), path.read_bytes())
    assert ids == right_ids, path.read_bytes()[:600]
    assert rows.shape == (len(right), width)
    np.testing.assert_array_equal(rows.astype(np.float32), np.array(right, dtype=np.float32))
    tail = [row for batch in rest for row in batch.rows.tolist()]
    np.testing.assert_array_equal(np.array(tail, dtype=np.float32).reshape(-1, width), rows[1:].astype(np.float32))


# -- JSON -------------------------------------------------------------------------------------------------------------


@st.composite
def contents(draw):  # noqa: C901
    """JSON of a known form."""
    rows = draw(tables(draw(st.sampled_from([False, False, False, True]))))
    names = [draw(WORDS) or "b" for _ in rows]
    if draw(st.booleans()):
        rows = [base64.b64encode(np.array(row, "<f4").tobytes()).decode() for row in rows]
    items = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
    key = draw(ID_NAMES)
    form = draw(st.integers(0, 15))
    if form == 0:
        return rows
    if form == 1:
        return [
            {key: name, draw(st.sampled_from(slow_reader.FIELDS)): row} for name, row in zip(names, rows, strict=True)
        ]
    if form == 2:
        order = draw(st.permutations(items))
        return {"object": "list", "data": order, "model": "m", "usage": {"total_tokens": 1}}
    if form == 3:
        return {"id": "u", "texts": names, "embeddings": rows, "meta": {}}
    if form == 4:
        kind = draw(st.sampled_from(["float", *CODES]))
        return {
            "id": "u",
            "texts": names,
            "embeddings": {kind: rows, "ubinary": None} if kind != "ubinary" else {kind: rows},
        }
    if form == 5:
        return {"embeddings": [{"values": row} for row in rows]}
    if form == 6:
        return {"predictions": [{"embeddings": {"statistics": {}, "values": row}} for row in rows], "metadata": {}}
    if form == 7:
        return {"model": "m", "embeddings": rows, "total_duration": 1}
    if form == 8:
        return {"ids": names, "embeddings": rows, "documents": names, "data": None, "included": ["embeddings"]}
    if form == 9:
        return {"vectors": {f"{n}{i}": {"id": f"{n}{i}", "values": row, "metadata": {}} for i, (n, row) in
                            enumerate(zip(names, rows, strict=True))}, "namespace": ""}  # fmt: skip
    points = [{"id": name, "payload": {}, "vector": row} for name, row in zip(names, rows, strict=True)]
    if form == 10:
        return {"result": {"points": points, "next_page_offset": None}, "status": "ok", "time": 0.1}
    if form == 11:
        return {"result": [{**point, "vector": {"dense": point["vector"]}} for point in points], "status": "ok"}
    if form == 12:
        return [{"embedding": {"values": row}} for row in rows]
    if form == 13:
        return [
            {
                "custom_id": name,
                "error": None,
                "response": {"status_code": 200, "body": {"object": "list", "data": [item]}},
            }
            for name, item in zip(names, [{**item, "index": 0} for item in items], strict=True)
        ]
    if form == 14:
        return {"matches": [{"id": n, "score": 0.5, "values": row} for n, row in zip(names, rows, strict=True)]}
    return [
        {key: name, "data": [1, 2], "response": "x", "embedding": row} for name, row in zip(names, rows, strict=True)
    ]


KEYS = [*slow_reader.FIELDS, "id", "_id", "index", "data", "error", "response", "status", "text", "ids", "points"]
VALUES = [
    None,
    True,
    0,
    1,
    -1,
    2.5,
    1e300,
    10**400,
    "",
    "x",
    "[0.5]",
    "AAAA",
    [],
    {},
    [0.5],
    [[0.5]],
    {"values": [0.5]},
]


def places(value, at=()):
    """Every place in a JSON value."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


def damaged(draw, content):
    """Change one place of a JSON value."""
    content = copy.deepcopy(content)
    spots = list(places(content))[1:]
    *way, last = draw(st.sampled_from(spots)) if spots else [None]
    if last is None:
        return content
    parent = content
    for key in way:
        parent = parent[key]
    how = draw(st.sampled_from(["replace", "remove", "rename", "add", "repeat", "swap"]))
    if how == "replace":
        parent[last] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    elif how == "remove":
        del parent[last]
    elif how == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(KEYS))] = parent.pop(last)
    elif how == "add" and isinstance(parent, dict):
        parent[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from([*VALUES, parent[last]])))
    elif how == "repeat" and isinstance(parent, list):
        parent.insert(last, copy.deepcopy(parent[last]))
    elif how == "swap" and isinstance(parent, list):
        other = draw(st.integers(0, len(parent) - 1))
        parent[last], parent[other] = parent[other], parent[last]
    return content


@fuzz("json")
@given(st.data())
def test_json(folder, data):
    content = data.draw(contents())
    for _ in range(data.draw(st.integers(0, 2))):
        if isinstance(content, (list, dict)) and content:
            content = damaged(data.draw, content)
    codes = data.draw(CODE)
    if isinstance(content, list) and data.draw(st.booleans()):
        text = "\n".join(map(json.dumps, content))
        suffix, read = ".jsonl", slow_reader.read_jsonl
    else:
        text, suffix, read = json.dumps(content), ".json", slow_reader.read_json
    raw = text.encode()
    if data.draw(st.integers(0, 19)) == 0:
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    path = folder / f"v{suffix}"
    path.write_bytes(raw)
    check(path, lambda: read(raw, codes), codes)
    if data.draw(st.integers(0, 9)) == 0:
        path = folder / f"v{suffix}.gz"
        path.write_bytes(gzip.compress(raw, 1))
        check(path, lambda: read(raw, codes), codes)


# -- CSV --------------------------------------------------------------------------------------------------------------


@st.composite
def sheets(draw):
    """Rows of cells in a known form."""
    rows = draw(tables(draw(st.sampled_from([False, False, True]))))
    form = draw(st.sampled_from(["{!r}", "{:g}", "{:.6e}", " {!r}"]))
    cells = [[form.format(number) for number in row] for row in rows]
    width = len(cells[0])
    prefix, first = draw(st.sampled_from(["", "x", "dim_", "emb-"])), draw(st.integers(0, 1))
    header = [f"{prefix}{i}" for i in range(first, first + width)]
    if draw(st.booleans()):
        marks = draw(st.sampled_from(["[]", "{}"]))
        cells = [[marks[0] + draw(st.sampled_from([", ", ",", " "])).join(row) + marks[1]] for row in cells]
        header = [draw(st.sampled_from(["embedding", "v", "vector"]))]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(header)))
        header.insert(at, draw(st.sampled_from(["id", "_id", "", "label", "docid", "index", "n1"])))
        is_number = draw(st.booleans())
        for number, row in enumerate(cells):
            row.insert(at, str(number) if is_number else draw(WORDS))
    return [header, *cells] if draw(st.sampled_from([True, True, True, False])) else cells


@fuzz("csv")
@given(st.data())
def test_csv(folder, data):
    rows = data.draw(sheets())
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 2]))):
        row = data.draw(st.sampled_from(rows))
        at = data.draw(st.integers(0, max(len(row) - 1, 0)))
        how = data.draw(st.sampled_from(["replace", "remove", "add", "swap", "repeat"]))
        value = data.draw(
            st.sampled_from(["", "x", "0", "1_0", "nan", "1e999", "[0.5]", "{1:2}/3", "0.5;1", "id", "7"])
        )
        if how == "replace" and row:
            row[at] = value
        elif how == "remove" and row:
            del row[at]
        elif how == "add":
            row.insert(at, value)
        elif how == "swap":
            for each in rows if data.draw(st.booleans()) else [row]:
                each[at : at + 2] = each[at : at + 2][::-1]
        else:
            rows.insert(0, list(row))
    suffix, delimiter = data.draw(st.sampled_from([(".csv", ","), (".csv", ","), (".tsv", "\t")]))
    file = io.StringIO()
    end = data.draw(st.sampled_from(["\n", "\n", "\r\n"]))
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(row for row in rows if row)
    raw = data.draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + file.getvalue().encode()
    if data.draw(st.integers(0, 19)) == 0:
        raw = raw[: data.draw(st.integers(0, len(raw)))] + data.draw(st.sampled_from([b"", b"\xff", b'"', b"\n\n"]))
    codes = data.draw(CODE if any("." not in cell for cell in rows[-1]) else st.sampled_from([None, None, "float32"]))
    path = folder / f"v{suffix}"
    path.write_bytes(raw)
    check(path, lambda: slow_reader.read_csv(raw, codes, delimiter), codes)


# -- arrays -----------------------------------------------------------------------------------------------------------


@fuzz("arrays")
@given(st.data())
def test_arrays(folder, data):
    rows = data.draw(tables(data.draw(st.booleans())))
    kind = data.draw(st.sampled_from(["<f4", "<f8", ">f4", "<f2", "i1", "u1", "<i8"]))
    array = np.array(rows).astype(kind, casting="unsafe")
    codes = data.draw(CODE)
    form = data.draw(st.sampled_from(["npy", "npz", "safetensors", "fvecs", "bvecs", "h5"]))
    buffer, keys = io.BytesIO(), None
    if form == "npy":
        np.save(buffer, np.asfortranarray(array) if data.draw(st.booleans()) else array)
    elif form == "npz":
        np.savez(buffer, emb=array)
    elif form == "safetensors":
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
        ids = {"ids": np.arange(len(array)) * 3} if data.draw(st.booleans()) else {}
        buffer.write(save({"emb": little, **ids}))
    elif form != "h5":
        head = np.int32(array.shape[1]).tobytes()
        plain = array.astype("<f4" if form == "fvecs" else "u1", casting="unsafe")
        buffer.write(b"".join(head + row.tobytes() for row in plain))
    else:
        keys = data.draw(st.sampled_from([None, [f"0{i}" for i in range(len(array))]]))
        path = folder / "written.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("group/emb", data=array, chunks=data.draw(st.sampled_from([None, True])))
            if keys is not None:
                file["group/docid"] = keys
        buffer.write(path.read_bytes())
    raw = bytearray(buffer.getvalue())
    if form != "h5" and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del raw[at:]
    raw = bytes(raw)
    path = folder / f"v.{form}"
    path.unlink(missing_ok=True)
    path.write_bytes(raw)
    read = {
        "npy": slow_reader.read_npy, "npz": slow_reader.read_npz, "safetensors": slow_reader.read_safetensors,
        "h5": lambda raw, codes: (slow_reader.decoded(array.tolist(), array.dtype.kind == "f", codes), keys),
    }.get(form, lambda raw, codes: slow_reader.read_vecs(raw, f".{form}", codes))  # fmt: skip
    check(path, lambda: read(raw, codes), codes)


@fuzz("parquet")
@given(st.data())
def test_parquet(folder, data):
    rows = data.draw(tables(data.draw(st.sampled_from([False, False, True]))))
    codes = data.draw(CODE)
    whole = isinstance(rows[0][0], int)
    given_rows: list = copy.deepcopy(rows)
    form = data.draw(st.sampled_from(["list", "list", "fixed", "text", "bytes", "nested"]))
    number = pa.int64() if whole else data.draw(st.sampled_from([pa.float32(), pa.float64()]))
    if form == "text":
        given_rows = list(map(str, given_rows))
    elif form == "bytes":
        given_rows = [np.array(row, "<f4").tobytes() for row in given_rows]
    elif form == "nested":
        given_rows = [[row] for row in given_rows]
    if data.draw(st.integers(0, 3)) == 0 and form not in ("text", "bytes", "fixed"):
        row = data.draw(st.integers(0, len(given_rows) - 1))
        change = data.draw(st.sampled_from(["null", "number", "longer", "empty"]))
        given_rows[row] = {
            "null": None, "number": [None, *given_rows[row][1:]], "longer": [*given_rows[row], given_rows[row][0]],
            "empty": [],
        }[change]  # fmt: skip
    kinds = {"list": pa.list_(number), "fixed": pa.list_(number, len(rows[0])), "text": pa.string()}
    kind = kinds.get(form) or (pa.binary() if form == "bytes" else pa.list_(pa.list_(number)))
    columns = {data.draw(st.sampled_from(["embedding", "vector"])): pa.array(given_rows, kind)}
    keys = data.draw(st.sampled_from([None, [f"0{i}" for i in range(len(rows))], list(map(float, range(len(rows))))]))
    if keys is not None:
        columns[data.draw(ID_NAMES)] = pa.array(keys)
    path = folder / "v.parquet"
    path.unlink(missing_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=data.draw(st.integers(1, 4)))

    def expected():
        content = pq.read_table(path).to_pydict()
        name = next(iter(columns))
        items = []
        for value in content[name]:
            if form == "nested":
                if value is None or len(value) != 1:
                    raise slow_reader.Unclear
                value = value[0]
            if isinstance(value, bytes):
                value = base64.b64encode(value).decode()
            items.append(slow_reader.vector(value, codes if whole or codes else None))
        if len({len(row) for row in items}) != 1:
            raise slow_reader.Unclear
        key = slow_reader.id_name([each for each in content if each != name])
        return items, None if key is None else [slow_reader.id_of(each) for each in content[key]]

    check(path, expected, codes)


# -- judgements -------------------------------------------------------------------------------------------------------


@fuzz("qrels")
@given(st.data())
def test_judgements(folder, data):
    word = st.sampled_from(["q1", "d2", "7", "00042", "Q0", "4.5", "Ä"])
    rows = [[data.draw(word), data.draw(word), str(data.draw(st.sampled_from([0, 1, 2, -1, 0.5])))]
            for _ in range(data.draw(st.integers(1, 4)))]  # fmt: skip
    header = data.draw(st.sampled_from([None, ["query-id", "corpus-id", "score"], ["qid", "docno", "rel"]]))
    if header is not None:
        rows.insert(0, header)
        order = data.draw(st.permutations([0, 1, 2]))
        rows = [[row[at] for at in order] for row in rows]
    elif data.draw(st.booleans()):
        rows = [[row[0], data.draw(st.sampled_from(["0", "Q0", "1.5"])), *row[1:]] for row in rows]
    for _ in range(data.draw(st.integers(0, 1))):
        row = data.draw(st.sampled_from(rows))
        at = data.draw(st.integers(0, len(row) - 1))
        row[at : at + 1] = data.draw(st.sampled_from([[], ["x"], ["a", "b"], [""], ["query-id"], ["nan"], ["1_0"]]))
    suffix = data.draw(st.sampled_from([".tsv", ".txt", ".csv"]))
    separator = {".csv": ","}.get(suffix) or data.draw(st.sampled_from(["\t", " "]))
    raw = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + "".join(separator.join(r) + "\n" for r in rows).encode()
    path = folder / f"test{suffix}"
    path.write_bytes(raw)
    found, message = attempt(lambda: list(read_qrels(path)))
    assert "\n" not in message
    if found is None:
        return
    right = truth(lambda: slow_reader.read_qrels(raw, suffix), found, raw)
    assert [(q, d) for q, d, _ in found] == [(q, d) for q, d, _ in right], raw
    np.testing.assert_array_equal([grade for *_, grade in found], [grade for *_, grade in right])
