"""The funnel in LanceDB: the head is searched in its own column, originals come back with the shortlist."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def rows(ids: Sequence[int], small: np.ndarray, original: np.ndarray, head: int) -> pa.Table:
    """A table to create or add: ids, head ``(n, head)`` (the first numbers of ``small``), originals as float16."""
    columns = {"head": small[:, :head].astype(np.float32), "original": original.astype(np.float16)}
    return pa.table(
        {
            "id": pa.array(np.asarray(ids, dtype=np.int64)),
            **{
                name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
                for name, values in columns.items()
            },
        }
    )


def search(table, small: np.ndarray, original: np.ndarray, shortlist: int, k: int) -> list[int]:
    """The ids nearest to one query, ``(small,)`` and ``(full,)``.

    Args:
        table: Of ``lancedb.connect(folder).create_table("documents", rows(...))``. Beyond some 100,000 rows give it an
            index, whose codes the originals rescore: ``table.create_index("head", config=IvfPq(distance_type="cosine",
            num_sub_vectors=12))`` of ``lancedb.index`` takes 12 bytes a document.
        small: Compressed query, as wide as the head or wider.
        original: The same at full width.
        shortlist: Rows the head lets through.
        k: Results.
    """
    head = table.schema.field("head").type.list_size
    found = (
        table.search(small[:head].astype(np.float32), vector_column_name="head")
        .distance_type("cosine")
        .select(["id", "original"])
        .limit(shortlist)
        .to_arrow()
    )
    wide = found["original"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    wide = wide.reshape(len(found), -1).astype(np.float32)
    score = wide @ original / np.linalg.norm(wide, axis=1)
    return found["id"].to_numpy()[np.argsort(-score, kind="stable")[:k]].tolist()
