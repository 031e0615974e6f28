"""The funnel in Qdrant: named vectors and nested ``prefetch``, in one request; local mode, server or cloud alike."""

from collections.abc import Sequence

import numpy as np
from qdrant_client import QdrantClient, models

QUANTIZED = {
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    "product": models.ProductQuantization(
        product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X16, always_ram=True)
    ),
}


def create(
    client: QdrantClient, sizes: Sequence[int], full: int, name: str = "documents", quantized: str | None = None
) -> None:
    """A collection with a named vector per size; only the smallest gets a graph, originals stay on disk.

    Args:
        client: ``QdrantClient(path="folder")`` is local, ``QdrantClient(url=...)`` a server.
        sizes: Compressed sizes, rising.
        full: Width of the originals.
        name: Of the collection.
        quantized: One of :data:`QUANTIZED` keeps codes of the head in memory and its floats on disk; local mode
            ignores it.
    """
    no_graph = models.HnswConfigDiff(m=0)  # searched only among candidates
    vectors = {
        str(size): models.VectorParams(
            size=size,
            distance=models.Distance.COSINE,
            hnsw_config=None if i == 0 else no_graph,
            quantization_config=QUANTIZED.get(quantized or "") if i == 0 else None,
            on_disk=i > 0 or quantized is not None,
        )
        for i, size in enumerate((*sizes, full))
    }
    client.create_collection(name, vectors_config=vectors)


def add(
    client: QdrantClient,
    ids: Sequence[int],
    small: np.ndarray,
    original: np.ndarray,
    sizes: Sequence[int],
    name: str = "documents",
) -> None:
    """Store rows: ids, vectors of the widest size ``(n, sizes[-1])``, which begin with the others, and originals."""
    points = [
        models.PointStruct(
            id=int(key),
            vector={**{str(size): narrow[:size].tolist() for size in sizes}, str(len(wide)): wide.tolist()},
        )
        for key, narrow, wide in zip(ids, small, original, strict=True)
    ]
    client.upload_points(name, points, wait=True)


def search(
    client: QdrantClient,
    small: np.ndarray,
    original: np.ndarray,
    steps: Sequence[tuple[int, int]],
    k: int,
    name: str = "documents",
) -> list[int]:
    """The ids nearest to one query.

    Args:
        client: See :func:`create`.
        small: Compressed query, ``(sizes[-1],)``.
        original: The same at full width.
        steps: Size and how many go on, smallest size first.
        k: Results.
        name: Of the collection.
    """
    inner = None
    for size, keep in steps:
        inner = models.Prefetch(query=small[:size].tolist(), using=str(size), limit=keep, prefetch=inner)
    found = client.query_points(
        name, query=original.tolist(), using=str(len(original)), prefetch=inner, limit=k, with_payload=False
    )
    return [point.id for point in found.points]
