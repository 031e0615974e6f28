"""The funnel in PostgreSQL with pgvector: one statement, an index over the first numbers of a column.

The compressed vectors are nested, so the head needs no column of its own: an expression index over ``subvector``
serves it. Only the head is indexed, so originals may be wider than an index allows (2,000 for ``vector``, 4,000 for
``halfvec``, which itself holds up to 16,000).
"""

from collections.abc import Sequence

import numpy as np

MOST_INDEXED = 2000  # dimensions of a vector


KINDS = ("vector", "halfvec", "bit")  # 4 and 2 bytes a number, or one bit, in the index


def head_of(column: str, head: int, kind: str, width: str = "") -> str:
    """The SQL of a head: in every query it must be the expression of the index, widths included.

    Args:
        column: What the numbers are taken from.
        head: How many.
        kind: One of :data:`KINDS`.
        width: Cast that gives a parameter its type.
    """
    cut = f"subvector({column}{width}, 1, {head})"
    return f"binary_quantize({cut}::vector({head}))::bit({head})" if kind == "bit" else f"{cut}::{kind}({head})"


def create(connection, small: int, head: int, full: int, table: str = "documents", kind: str = "vector") -> None:
    """Make the table and the index over the first ``head`` of ``small`` numbers.

    Args:
        connection: Of psycopg.
        small: Width of the compressed vectors.
        head: Width that searches everything.
        full: Width of the originals.
        table: A plain name.
        kind: How the index stores a head, one of :data:`KINDS`.
    """
    if not 1 <= head <= min(small, MOST_INDEXED):
        raise ValueError(f"The head must be 1 to {min(small, MOST_INDEXED)} wide, got {head}.")
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute(
        f"CREATE TABLE {table} (id bigint PRIMARY KEY, small vector({small}), original halfvec({full}))"
    )
    # In the expression, and in every query, the cast must say the width: the index serves only the same expression.
    measure = "bit_hamming_ops" if kind == "bit" else f"{kind}_cosine_ops"
    connection.execute(f"CREATE INDEX ON {table} USING hnsw (({head_of('small', head, kind)}) {measure})")


def add(connection, ids: Sequence[int], small: np.ndarray, original: np.ndarray, table: str = "documents") -> None:
    """Store rows, by COPY: ``(n,)``, ``(n, small)``, ``(n, full)``."""
    with connection.cursor().copy(f"COPY {table} (id, small, original) FROM STDIN") as copy:
        for key, narrow, wide in zip(ids, small, original, strict=True):
            copy.write_row((int(key), text(narrow), text(wide)))


def search(
    connection,
    small: np.ndarray,
    original: np.ndarray,
    head: int,
    shortlist: int,
    k: int,
    table: str = "documents",
    kind: str = "vector",
) -> list[int]:
    """The ids nearest to one query, ``(small,)`` and ``(full,)``: the head makes a shortlist, originals rank it."""
    # HNSW returns at most ef_search rows, so it must not be smaller than the shortlist (1,000 is the most it takes).
    connection.execute(f"SET LOCAL hnsw.ef_search = {min(1000, max(40, int(shortlist)))}")
    rows = connection.execute(
        f"""
        WITH shortlist AS MATERIALIZED (
            SELECT id, original FROM {table}
            ORDER BY {head_of("small", head, kind)} {"<~>" if kind == "bit" else "<=>"}
                     {head_of("%s", head, kind, f"::vector({len(small)})")} LIMIT %s
        )
        SELECT id FROM shortlist ORDER BY original <=> %s::halfvec LIMIT %s
        """,
        (text(small), shortlist, text(original), k),
    )
    return [row[0] for row in rows]


def text(vector: np.ndarray) -> str:
    """pgvector's own notation."""
    return "[" + ",".join(f"{value:.8g}" for value in vector.tolist()) + "]"
