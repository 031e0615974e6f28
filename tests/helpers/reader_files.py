"""Vectors that several readers are given, and the answers and files that hold them."""

from __future__ import annotations

import base64
import csv
import io
import json

import numpy as np
import pytest

ROWS = [[0.5, -0.25, 0.125, 1.5], [1.0, 2.5, -3.0, 0.75], [-0.5, 0.0, 0.25, 2.0]]
V = np.array(ROWS, dtype=np.float32)
IDS = ["d0", "00042", "d2"]
CODES = [[12, -3, 127, -128], [1, 2, 3, 4], [-1, 5, 0, 7]]
WIDE = np.random.default_rng(3).normal(size=(3, 32)).astype(np.float32)


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


def table(*columns, header=None, rows=ROWS, delimiter=","):
    """CSV of columns of texts and the vectors."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    if header is not None:
        writer.writerow(header)
    for i, row in enumerate(rows):
        writer.writerow([*(column[i] for column in columns), *row])
    return file.getvalue()


def save_named(path, form, **arrays):
    if form == "npz":
        np.savez(path / "v.npz", **arrays)
        return path / "v.npz"
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "v.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array.tolist() if array.dtype.kind == "U" else array
    return path / "v.h5"
