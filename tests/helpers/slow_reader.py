"""A slow reader of vectors and judgements, written from the formats' definitions: the fuzz compares with it.

It shares no code with the package. ``Unclear`` means that a careful person could not tell what a file holds.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import io
import json
import math
import re
import struct
import zipfile

ID_ORDER = [
    "id", "ids", "customid", "recordid", "rowid", "chunkid", "passageid", "pid", "docid", "documentid", "docno",
    "corpusid", "queryid", "qid", "uuid", "pk", "index", "unnamed:0", "indexlevel0",
]  # fmt: skip
FIELDS = ["embedding", "vector", "embeddings", "values", "vectors"]
BYTES = {"float32": ("f", 4), "int8": ("b", 1), "uint8": ("B", 1), "binary": ("b", 1), "ubinary": ("B", 1)}


class Unclear(Exception):
    """The file could be read in several ways, or in none."""


def same(name):
    return "".join(letter for letter in name.lower() if letter not in "-_ \t\n")


def id_name(names):
    for known in ID_ORDER:
        found = [name for name in names if same(name) == known or (same(name) == known + "s" and known != "id")]
        if len(found) > 1:
            raise Unclear
        if found:
            return found[0]
    return None


def id_of(value):
    if value is None or value == "" or isinstance(value, (bool, list, dict)):
        raise Unclear
    if isinstance(value, float):
        if math.isnan(value):
            raise Unclear
        if value == math.floor(value) and not math.isinf(value):
            return str(int(value))
    return str(value)


def single(number):
    try:
        found = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        raise Unclear from None
    return found


def numbers(values, codes, whole):
    """Decode numbers, one at a time."""
    if codes is None:
        if whole:
            raise Unclear
        return [single(float(value)) for value in values]
    if codes == "float32":
        return [single(float(value)) for value in values]
    out = []
    for value in values:
        low = -128 if codes in ("int8", "binary") else 0
        if not (low <= value <= low + 255) or value != math.floor(value):
            raise Unclear
        number = int(value)
        if codes == "int8":
            out.append(float(number))
        elif codes == "uint8":
            out.append(float(number - 128))
        else:
            out += [1.0 if (number - low) >> bit & 1 else -1.0 for bit in range(7, -1, -1)]
    return out


NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|inf|infinity|nan)\s*", re.I)


def cells(parts, codes):
    if not parts or not all(NUMBER.fullmatch(part) for part in parts):
        raise Unclear
    whole = all(re.fullmatch(r"\s*[-+]?\d+\s*", part) for part in parts)
    return numbers([float(part) for part in parts], codes, whole)


def raw_bytes(data, codes):
    letter, size = BYTES[codes or "float32"]
    if not data or len(data) % size:
        raise Unclear
    values = struct.unpack(f"<{len(data) // size}{letter}", data)
    if codes is None:
        sizes = [abs(value) for value in values if value != 0]
        if not sizes or any(map(math.isnan, values)) or not 1e-4 < max(sizes) < 1e4:
            raise Unclear
        if min(sizes) <= 1e-10 * max(sizes):
            raise Unclear
    return numbers(values, codes, False)


def vector(value, codes):
    if isinstance(value, str):
        text = value.strip()
        if text[:1] + text[-1:] in ("[]", "{}"):
            inner = text[1:-1]
            return cells(inner.split(",") if "," in inner else inner.split(), codes)
        if len(text) >= 8 and set(text) <= set("01"):
            raise Unclear
        try:
            return raw_bytes(base64.b64decode(text, validate=True), codes)
        except (binascii.Error, ValueError):
            raise Unclear from None
    if not isinstance(value, list) or not value or not all(type(item) in (int, float) for item in value):
        raise Unclear
    try:
        return numbers([float(item) for item in value], codes, all(type(item) is int for item in value))
    except OverflowError:
        raise Unclear from None


# -- JSON -------------------------------------------------------------------------------------------------------------


def like_vector(value):
    if isinstance(value, list):
        return bool(value) and not isinstance(value[0], (list, dict))
    return isinstance(value, str) and value != ""


def named(value):
    return isinstance(value, dict) and value != {} and "values" not in value and all(map(like_vector, value.values()))


def walk(value, *keys):
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def marked(value, marks, allowed_ids=(None,)):
    """Whether the keys beside the entries are those of the answer."""
    if len(value) > 1 and not any(mark in value for mark in marks):
        return False
    return id_name(list(value)) in allowed_ids or (marks and marks[0] in value)


def entries_at(value, keys, part, allowed_ids, marks, with_names):
    """The entries of an answer if the object looks like that answer."""
    found = walk(value, *keys)
    if not isinstance(found, list) or not found:
        return None
    if not marked(value, marks, allowed_ids):
        return None
    first = walk(found[0], *part)
    return found if like_vector(first) or (with_names and named(first)) else None


def json_items(value):  # noqa: C901
    """(vector, id, codes) of one JSON value."""
    if isinstance(value, list):
        return [(value, None, None)]
    if not isinstance(value, dict):
        raise Unclear
    readings = []
    for name in FIELDS:
        if like_vector(value.get(name)) or named(value.get(name)):
            readings.append(lambda name=name: [record(value, name)])
    if like_vector(walk(value, "embedding", "values")):
        readings.append(lambda: [(value["embedding"]["values"], record_id(value, None), None)])
    vertex = ("metadata", "status", "deployedModelId")
    plain = [
        (("data",), ("embedding",), ("object", "model", "usage"), False),
        (("data",), ("values",), ("vector_type", "model", "usage"), False),
        (("embeddings",), (), ("texts", "model", "meta", "response_type"), False),
        (("embeddings",), ("values",), ("metadata", "usageMetadata", "sdk_http_response"), False),
        (("embedding",), (), (), False),
        (("predictions",), ("embeddings", "values"), vertex, False),
        (("predictions",), ("textEmbedding",), vertex, False),
        (("predictions",), ("imageEmbedding",), vertex, False),
        (("vectors",), ("values",), ("namespace", "usage"), True),
        (("matches",), ("values",), ("namespace", "usage", "results"), True),
        (("result", "points"), ("vector",), ("status", "time"), True),
        (("result",), ("vector",), ("status", "time"), True),
        (("points",), ("vector",), ("next_page_offset",), True),
        (("objects",), ("vector",), ("totalResults", "deprecations"), True),
    ]
    for keys, part, marks, ids in plain:
        found = entries_at(value, keys, part, (None,), marks, ids)
        if found is not None:
            order = "index" if part == ("embedding",) else None
            readings.append(lambda a=(found, part, order, ids): answer(value, *a))
    chroma = entries_at(value, ("embeddings",), (), (None, "ids"), ("ids",), False)
    if chroma is not None and "ids" in value:
        readings.append(lambda: chroma_items(value, chroma))
    fetched = value.get("vectors")
    if isinstance(fetched, dict) and fetched and marked(value, ("namespace", "usage")):
        first = next(iter(fetched.values()))
        if like_vector(walk(first, "values")) or named(walk(first, "values")):
            readings.append(lambda: keyed(value, fetched))
    typed = value.get("embeddings")
    if isinstance(typed, dict) and typed and set(typed) <= {*BYTES, "float", "float_", "base64"}:
        if all(part is None or isinstance(part, list) for part in typed.values()):
            if marked(value, ("texts", "meta", "response_type")):
                readings.append(lambda: by_type(value, typed))
    if isinstance(value.get("response"), dict):
        body = value["response"].get("body")
        if isinstance(body, dict) and "custom_id" in value:
            readings.append(lambda: enveloped(value, body, "custom_id"))
        elif "key" in value:
            readings.append(lambda: enveloped(value, value["response"], "key"))
    if len(readings) != 1:
        raise Unclear
    return readings[0]()


def record_id(value, skip):
    names = [name for name in value if name != skip]
    if value.get("object") == "embedding":
        names = [name for name in names if name != "index"]
    key = id_name(names)
    return None if key is None or value[key] is None else id_of(value[key])


def only(value):
    """The only vector of several by name."""
    if not isinstance(value, dict):
        return value, None
    if "indices" in value and "values" in value:
        raise Unclear
    there = {name: part for name, part in value.items() if part is not None}
    if len(there) != 1:
        raise Unclear
    name = next(iter(there))
    return there[name], name if name in BYTES else "float32" if name in ("float", "float_", "base64") else None


def record(value, name):
    found, codes = only(value[name])
    return found, record_id(value, name), codes


def failed(value):
    return bool(value.get("error")) or value.get("status") not in (None, "", "ok", "success")


def answer(value, found, part, order, with_ids):
    if failed(value):
        raise Unclear
    if order is not None:
        given = [walk(entry, order) for entry in found]
        if not all(isinstance(entry, dict) for entry in found):
            raise Unclear
        if any(place is not None for place in given):
            if any(type(place) is not int for place in given) or sorted(given) != list(range(len(given))):
                raise Unclear
            found = [found[given.index(place)] for place in range(len(given))]
    out = []
    for entry in found:
        one = walk(entry, *part)
        if one is None:
            raise Unclear
        one, codes = only(one)
        key = entry.get("id") if with_ids else None
        out.append((one, None if key is None else id_of(key), codes))
    return out


def chroma_items(value, found):
    if failed(value) or not isinstance(value["ids"], list) or len(value["ids"]) != len(found):
        raise Unclear
    return [(*only(one)[:1], id_of(key), only(one)[1]) for one, key in zip(found, value["ids"], strict=True)]


def keyed(value, found):
    if failed(value):
        raise Unclear
    out = []
    for key, entry in found.items():
        one = walk(entry, "values")
        if one is None:
            raise Unclear
        out.append((only(one)[0], id_of(entry.get("id", key)), only(one)[1]))
    return out


def by_type(value, typed):
    if failed(value):
        raise Unclear
    listed, codes = only(typed)
    return [(only(one)[0], None, codes or only(one)[1]) for one in listed]


def enveloped(value, body, key):
    if value.get("error") or walk(value, "response", "status_code") not in (None, 200):
        raise Unclear
    found = json_items(body)
    base = id_of(value[key])
    return [(one, base if len(found) == 1 else f"{base}/{n}", codes) for n, (one, _, codes) in enumerate(found)]


def models(value):
    """Every model that the content names, loosely: two of them are refused."""
    if isinstance(value, dict):
        found = {value["model"]} if isinstance(value.get("model"), str) and value["model"] else set()
        return found.union(*map(models, value.values()))
    return set().union(*map(models, value)) if isinstance(value, list) else set()


def finished(items, codes):
    rows, ids = [], []
    for value, key, own in items:
        if own is not None and codes is not None and own != codes:
            raise Unclear
        rows.append(vector(value, own or codes))
        ids.append(key)
    if not rows or len({len(row) for row in rows}) > 1 or len({key is None for key in ids}) > 1:
        raise Unclear
    return rows, None if ids[0] is None else ids


def parsed(data):
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        raise Unclear from None


def read_json(data, codes=None):
    content = parsed(data)
    several = isinstance(content, list) and content and isinstance(content[0], (list, dict))
    items = [item for value in (content if several else [content]) for item in json_items(value)]
    return finished(items, codes)


def read_jsonl(data, codes=None):
    items = []
    for line in data.split(b"\n"):
        if line.strip():
            value = parsed(line)
            several = isinstance(value, list) and value and isinstance(value[0], list)
            for one in value if several else [value]:
                items += json_items(one)
    return finished(items, codes)


# -- CSV --------------------------------------------------------------------------------------------------------------


def in_brackets(text):
    text = text.strip()
    return text[:1] + text[-1:] in ("[]", "{}")


def counts(names):
    """Whether names count from 0 or 1."""
    if not names or not all(re.fullmatch(r"\d+", name) for name in names):
        return False
    found = sorted(map(int, names))
    return len(found) > 1 and found[0] in (0, 1) and found == list(range(found[0], found[0] + len(found)))


def read_csv(data, codes=None, delimiter=","):
    try:
        text = data.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    except (UnicodeDecodeError, csv.Error):
        raise Unclear from None
    if not rows:
        raise Unclear
    first = rows[0]
    brackets = [at for at, cell in enumerate(first) if in_brackets(cell)]
    if len(brackets) == 1:
        if any(len(row) != len(first) for row in rows):
            raise Unclear
        if len(first) == 2:
            return finished([(row[brackets[0]], id_of(row[1 - brackets[0]]), None) for row in rows], codes)
        return finished([(row[brackets[0]], None, None) for row in rows], codes)
    numeric = [cell.strip() for cell in first if NUMBER.fullmatch(cell)]
    if counts(numeric) or (not numeric and not brackets):
        return csv_with_header(rows, codes)
    if len(numeric) < len(first):
        raise Unclear
    for at in range(len(first)):
        column = [row[at] if at < len(row) else "" for row in rows]
        others = [cell for row in rows for place, cell in enumerate(row) if place != at]
        whole = [re.fullmatch(r"\s*[-+]*\d+\s*", cell) is not None for cell in column]
        if codes is None and all(whole) and not all(re.fullmatch(r"\s*[-+]?\d+\s*", cell) for cell in others):
            raise Unclear
    found = [cells(row, codes) for row in rows]
    if len({len(row) for row in found}) > 1:
        raise Unclear
    return found, None


def csv_with_header(rows, codes):  # noqa: C901
    names = [cell.strip() for cell in rows[0]]
    names[0] = names[0] or "Unnamed: 0"
    if len(rows) == 1 or any(len(row) != len(names) for row in rows):
        raise Unclear
    candidates = {}
    for at, name in enumerate(names):
        likely = same(name) in FIELDS and not NUMBER.fullmatch(rows[1][at])
        if likely or in_brackets(rows[1][at]):
            candidates[name] = [at]
    texts = set(candidates)
    groups = {}
    for at, name in enumerate(names):
        match = re.fullmatch(r"(.*?)[-_. ]*(\d+)", name)
        if match and name not in texts and id_name([name]) is None:
            groups.setdefault(match[1], []).append((match[2], at))
    for prefix, members in groups.items():
        if counts([number for number, _ in members]):
            candidates[prefix or "0"] = [at for _, at in sorted((int(number), at) for number, at in members)]
    if len(candidates) != 1:
        raise Unclear
    chosen, places = next(iter(candidates.items()))
    if chosen == "0" and codes is None:
        whole = [all(re.fullmatch(r"\s*[-+]*\d+\s*", row[at]) for row in rows[1:]) for at in places]
        if any(whole) and not all(whole):
            raise Unclear
    key = id_name([name for at, name in enumerate(names) if at not in places])
    at_id = None if key is None else names.index(key)
    out, ids = [], []
    for row in rows[1:]:
        is_text = chosen in texts
        out.append(vector(row[places[0]], codes) if is_text else cells([row[at] for at in places], codes))
        ids.append(None if at_id is None else id_of(row[at_id]))
    if len({len(row) for row in out}) > 1:
        raise Unclear
    return out, None if at_id is None else ids


# -- arrays -----------------------------------------------------------------------------------------------------------

KINDS = {"f4": "f", "f8": "d", "f2": "e", "i1": "b", "u1": "B", "i2": "h", "i4": "i", "i8": "q"}


def read_npy(data, codes=None):
    if data[:6] != b"\x93NUMPY" or len(data) < 10 or data[6] != 1:
        raise Unclear
    length = struct.unpack("<H", data[8:10])[0]
    try:
        head = ast.literal_eval(data[10 : 10 + length].decode("latin-1").strip())
        kind, shape, fortran = head["descr"], head["shape"], head["fortran_order"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, UnicodeDecodeError):
        raise Unclear from None
    if not isinstance(kind, str) or len(shape) != 2 or kind[1:] not in KINDS:
        raise Unclear
    return table(data[10 + length :], kind[0], KINDS[kind[1:]], shape, fortran, codes), None


def table(data, order, letter, shape, fortran, codes):
    rows, width = shape
    size = struct.calcsize("=" + letter)
    if len(data) < rows * width * size or rows < 1 or width < 1:
        raise Unclear
    values = struct.unpack(f"{'>' if order == '>' else '<'}{rows * width}{letter}", data[: rows * width * size])
    listed = [[values[c * rows + r if fortran else r * width + c] for c in range(width)] for r in range(rows)]
    return decoded(listed, letter in "fde", codes)


def decoded(listed, are_floats, codes):
    """Rows of an array whose type says whether its numbers are floats."""
    if are_floats and codes in (None, "float32"):
        return listed
    return [numbers(row, codes, not are_floats) for row in listed]


def read_vecs(data, suffix, codes=None):
    letter, size = ("f", 4) if suffix == ".fvecs" else ("B", 1)
    rows, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise Unclear
        width = struct.unpack("<i", data[at : at + 4])[0]
        if width < 1 or at + 4 + width * size > len(data) or (rows and width != len(rows[0])):
            raise Unclear
        rows.append(struct.unpack(f"<{width}{letter}", data[at + 4 : at + 4 + width * size]))
        at += 4 + width * size
    if not rows:
        raise Unclear
    if letter == "f" and codes in (None, "float32"):
        return [list(row) for row in rows], None
    return [numbers(row, codes, letter == "B") for row in rows], None


def read_safetensors(data, codes=None):
    kinds = {"F32": "f", "F64": "d", "F16": "e", "I8": "b", "U8": "B", "I64": "q"}
    try:
        length = struct.unpack("<Q", data[:8])[0]
        head = parsed(data[8 : 8 + length])
        head.pop("__metadata__", None)
        body = data[8 + length :]
        tables = {name: part for name, part in head.items() if len(part["shape"]) == 2}
        if len(tables) != 1 or sum(part["data_offsets"][1] - part["data_offsets"][0] for part in head.values()) != len(
            body
        ):
            raise Unclear
        name, part = next(iter(tables.items()))
        rows = table(body[slice(*part["data_offsets"])], "<", kinds[part["dtype"]], part["shape"], False, codes)
        keys = [key for key, other in head.items() if other["shape"] == part["shape"][:1] and id_name([key])]
        if len(keys) > 1:
            raise Unclear
        if not keys:
            return rows, None
        other = head[keys[0]]
        values = struct.unpack(f"<{len(rows)}{kinds[other['dtype']]}", body[slice(*other["data_offsets"])])
        return rows, [id_of(value) for value in values]
    except (struct.error, KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise Unclear from None


def read_npz(data, codes=None):
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError, KeyError):
        raise Unclear from None
    if len(members) != 1:
        raise Unclear
    return read_npy(next(iter(members.values())), codes)


# -- judgements -------------------------------------------------------------------------------------------------------

QUERY = {"queryid", "query", "qid", "topicid", "topic"}
DOCUMENT = {"corpusid", "docid", "documentid", "docno", "passageid", "pid", "document", "doc"}
GRADE = {"score", "grade", "relevance", "rel", "label", "judgment", "judgement", "qrel"}


def read_qrels(data, suffix):
    """(query, document, grade) of each line."""
    try:
        text = data.decode("utf-8-sig")
        if suffix == ".csv":
            rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        else:
            rows = [
                row.rstrip("\r").split("\t") if "\t" in row else row.split()
                for row in re.split(r"\n", text) if row.strip()
            ]  # fmt: skip
    except (UnicodeDecodeError, csv.Error):
        raise Unclear from None
    if not rows:
        return []
    where = [[at for at, cell in enumerate(rows[0]) if same(cell) in known] for known in (QUERY, DOCUMENT, GRADE)]
    if where[0] and where[1]:
        if any(len(found) > 1 for found in where) or (not where[2] and len(rows[0]) > 2):
            raise Unclear
        places, body = [where[0][0], where[1][0], where[2][0] if where[2] else None], rows[1:]
    elif len(rows[0]) == 3:
        places, body = [0, 1, 2], rows
    elif len(rows[0]) == 4:
        if not all(
            len(row) > 1 and re.fullmatch(r"[qQ]0|\d*\.?\d*", row[1]) and row[1] not in ("", ".") for row in rows
        ):
            raise Unclear
        places, body = [0, 2, 3], rows
    else:
        raise Unclear
    out = []
    for row in body:
        if len(row) != len(rows[0]):
            raise Unclear
        grade = "1" if places[2] is None else row[places[2]]
        if not NUMBER.fullmatch(grade) or not row[places[0]] or not row[places[1]]:
            raise Unclear
        out.append((row[places[0]], row[places[1]], float(grade)))
    return out
