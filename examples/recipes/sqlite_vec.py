"""The funnel in SQLite with sqlite-vec: a ``vec0`` table for the head, originals in an ordinary table beside it.

Python's own ``sqlite3`` must be able to load extensions (``enable_load_extension``); if not, ``pysqlite3`` can.
"""

from collections.abc import Sequence

import numpy as np

KINDS = {"float": "distance_metric=cosine", "int8": "distance_metric=cosine", "bit": ""}  # bits by Hamming distance


def create(connection, head: int, kind: str = "float") -> None:
    """Tables for heads of that width and for originals. The extension must be loaded (``sqlite_vec.load``).

    Args:
        connection: Of sqlite3.
        head: Width of the heads; a multiple of 8 for bits.
        kind: "float" (4 bytes a number), "int8" (1) or "bit" (1/8).
    """
    column = f"head {kind}[{int(head)}] {KINDS[kind]}"
    connection.execute(f"CREATE VIRTUAL TABLE heads USING vec0(id INTEGER PRIMARY KEY, {column})")
    connection.execute("CREATE TABLE originals (id INTEGER PRIMARY KEY, original BLOB NOT NULL)")


def add(
    connection, ids: Sequence[int], small: np.ndarray, original: np.ndarray, head: int, kind: str = "float"
) -> None:
    """Store rows in one transaction: ids, ``(n, small)`` (the first ``head`` are kept), originals ``(n, full)``."""
    with connection:
        connection.executemany(
            f"INSERT INTO heads (id, head) VALUES (?, {reader(kind)})",
            ((int(key), code(row[:head], kind)) for key, row in zip(ids, small, strict=True)),
        )
        connection.executemany(
            "INSERT INTO originals VALUES (?, ?)",
            ((int(key), blob(row)) for key, row in zip(ids, original, strict=True)),
        )


def search(
    connection, small: np.ndarray, original: np.ndarray, head: int, shortlist: int, k: int, kind: str = "float"
) -> list[int]:
    """The ids nearest to one query, ``(small,)`` and ``(full,)``. Bits need a longer shortlist than numbers."""
    rows = connection.execute(
        f"""
        WITH shortlist AS (SELECT id FROM heads WHERE head MATCH {reader(kind)} AND k = ?)
        SELECT id FROM shortlist JOIN originals USING (id) ORDER BY vec_distance_cosine(original, ?) LIMIT ?
        """,
        (code(small[:head], kind), shortlist, blob(original), k),
    )
    return [row[0] for row in rows]


def reader(kind: str) -> str:
    """The SQL that says how a blob is to be read."""
    return "?" if kind == "float" else f"vec_{kind}(?)"


def code(vector: np.ndarray, kind: str) -> bytes:
    """A head as it is stored. One scale for all numbers of an int8 vector leaves its cosines as they are."""
    if kind == "bit":
        return np.packbits(vector > 0, bitorder="little").tobytes()
    if kind == "int8":
        return np.rint(127 * vector / np.abs(vector).max()).astype(np.int8).tobytes()
    return blob(vector)


def blob(vector: np.ndarray) -> bytes:
    """sqlite-vec's own form: float32, little-endian."""
    return np.asarray(vector, dtype="<f4").tobytes()
