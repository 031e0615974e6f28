"""The funnel in SQLite with sqlite-vec: a ``vec0`` table for the head, originals in an ordinary table beside it.

Python's own ``sqlite3`` must be able to load extensions (``enable_load_extension``); if not, ``pysqlite3`` can.
"""

from collections.abc import Sequence

import numpy as np


def create(connection, head: int) -> None:
    """Tables for heads of that width and for originals. The extension must be loaded (``sqlite_vec.load``)."""
    column = f"head float[{int(head)}] distance_metric=cosine"
    connection.execute(f"CREATE VIRTUAL TABLE heads USING vec0(id INTEGER PRIMARY KEY, {column})")
    connection.execute("CREATE TABLE originals (id INTEGER PRIMARY KEY, original BLOB NOT NULL)")


def add(connection, ids: Sequence[int], small: np.ndarray, original: np.ndarray, head: int) -> None:
    """Store rows in one transaction: ids, ``(n, small)`` (the first ``head`` are kept), originals ``(n, full)``."""
    with connection:
        connection.executemany(
            "INSERT INTO heads (id, head) VALUES (?, ?)",
            ((int(key), blob(row[:head])) for key, row in zip(ids, small, strict=True)),
        )
        connection.executemany(
            "INSERT INTO originals VALUES (?, ?)",
            ((int(key), blob(row)) for key, row in zip(ids, original, strict=True)),
        )


def search(connection, small: np.ndarray, original: np.ndarray, head: int, shortlist: int, k: int) -> list[int]:
    """The ids nearest to one query, ``(small,)`` and ``(full,)``."""
    rows = connection.execute(
        """
        WITH shortlist AS (SELECT id FROM heads WHERE head MATCH ? AND k = ?)
        SELECT id FROM shortlist JOIN originals USING (id) ORDER BY vec_distance_cosine(original, ?) LIMIT ?
        """,
        (blob(small[:head]), shortlist, blob(original), k),
    )
    return [row[0] for row in rows]


def blob(vector: np.ndarray) -> bytes:
    """sqlite-vec's own form: float32, little-endian."""
    return np.asarray(vector, dtype="<f4").tobytes()
