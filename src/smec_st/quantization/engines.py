"""Codecs as FAISS indexes: the same codes, compared in FAISS."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.vectors import unit_rows
from smec_st.quantization.codecs import Binary, Codec, Int8, Product
from smec_st.system.errors import DataError
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from faiss import Index

KINDS = ("flat", "ivf", "hnsw")
NEIGHBOURS = 32  # M of HNSW
CONSTRUCTION = 100  # efConstruction
CENTROIDS = 256  # of one byte

_NAMES = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8"}  # what `index_factory` calls a precision


def faiss_index(codec: Codec, kind: str = "flat", metric: str = "ip", sample: np.ndarray | None = None) -> Index:
    """Make an empty FAISS index that stores the codes of a codec; see :meth:`Head.to_faiss`."""
    faiss = load_optional("faiss", "a FAISS index")
    if kind not in KINDS or metric not in ("ip", "l2"):
        raise DataError(f"kinds are {', '.join(KINDS)} and metrics ip and l2, got {kind!r} and {metric!r}.")
    if kind == "hnsw" and isinstance(codec, (Binary, Product)):
        metric = "l2"  # FAISS has no graph over inner products of product codes
    measure = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    centroids = _centroids(codec)
    before = _rotation(faiss, codec) if isinstance(codec, Binary) else None
    dim = codec.dim if before is None else before.d_out
    stored = _NAMES[codec.precision] if centroids is None else f"PQ{codec.bytes}"
    if kind == "flat":
        index = faiss.index_factory(dim, stored, measure)
    elif kind == "hnsw":
        index = faiss.index_factory(dim, f"HNSW{NEIGHBOURS},{stored}", measure)
        index.hnsw.efConstruction = CONSTRUCTION
    else:
        if sample is None:
            raise DataError("inverted lists are trained: give a sample of vectors.")
        rows = np.ascontiguousarray(sample, dtype=np.float32)
        index = _inverted(faiss, dim, stored, rows if before is None else before.apply(rows), measure)
    _fill(faiss, index, codec, centroids)
    whole: Index = index if before is None else faiss.IndexPreTransform(before, index)
    return whole


def _fill(faiss: ModuleType, index: Any, codec: Codec, centroids: np.ndarray | None) -> None:
    """Give an index the parameters of a codec, in place of training it."""
    is_graph = isinstance(index, faiss.IndexHNSW)
    storage = faiss.downcast_index(index.storage) if is_graph else index
    if isinstance(codec, Int8):
        trained = np.concatenate([codec.low - codec.step / 2, 255 * codec.step]).astype(np.float32)
        faiss.copy_array_to_vector(trained, storage.sq.trained)
    elif centroids is not None:
        faiss.copy_array_to_vector(np.ascontiguousarray(centroids, dtype=np.float32).ravel(), storage.pq.centroids)
        if is_graph:
            storage.pq.compute_sdc_table()
    index.is_trained = storage.is_trained = True


def _inverted(faiss: ModuleType, dim: int, stored: str, rows: np.ndarray, measure: int) -> Any:
    """Make inverted lists whose centres are trained on these rows, and whose codes are not of residuals."""
    lists = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 39))
    means = faiss.Kmeans(dim, lists, niter=10, min_points_per_centroid=1, max_points_per_centroid=64, seed=0)
    means.train(rows)
    index = faiss.index_factory(dim, f"IVF{lists},{stored}", measure)
    index.quantizer.add(means.centroids)
    index.by_residual = False
    return index


def _centroids(codec: Codec) -> np.ndarray | None:
    """Return what each code of each byte stands for, ``(bytes, 256, numbers)``; None for codes of single numbers."""
    if isinstance(codec, Binary):
        return _sign_centroids(codec)
    if not isinstance(codec, Product):
        return None
    missing = CENTROIDS - codec.centroids.shape[1]  # of a tiny corpus; too far away to be the code of anything
    return np.pad(codec.centroids, ((0, 0), (0, missing), (0, 0)), constant_values=1e3)


def _sign_centroids(codec: Binary) -> np.ndarray:
    """Return the vectors that each byte of signs stands for, ``(bytes, 256, 8)``: bits as product codes."""
    bits = np.unpackbits(np.arange(CENTROIDS, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
    centroids = np.tile((2 * bits - 1) / np.sqrt(np.float32(codec.dim)), (codec.bytes, 1, 1))
    unused = 8 * codec.bytes - codec.dim
    if unused:
        centroids[-1, :, 8 - unused :] = 0
    return centroids


def _rotation(faiss: ModuleType, codec: Binary) -> Any:
    """Return the transform to the signs: a rotation and zeros up to whole bytes; None if neither is needed."""
    wide = 8 * codec.bytes
    if codec.rotation is None and wide == codec.dim:
        return None
    matrix = np.zeros((wide, codec.dim), dtype=np.float32)
    matrix[: codec.dim] = np.eye(codec.dim) if codec.rotation is None else codec.rotation.T
    transform = faiss.LinearTransform(codec.dim, wide, False)
    faiss.copy_array_to_vector(matrix.ravel(), transform.A)
    transform.is_trained = True
    transform.is_orthonormal = True  # the rows that hold numbers are
    return transform


def faiss_codes(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Convert codes of a head to those of its FAISS index, ``(n, bytes)`` uint8; int8 counts from -128 to 127."""
    raw = np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), codec.bytes)
    return raw ^ np.uint8(0x80) if codec.precision == "int8" else raw


def search_codes(index: Index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search a FAISS index of codes by the head's own scores; see :meth:`Head.search`."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    k = min(k, index.ntotal)
    fetch, previous = min(index.ntotal, 4 * k + 32), None
    while True:
        _, rows, vectors = index.search_and_reconstruct(queries, fetch)
        flat = unit_rows(np.where(rows.reshape(-1, 1) >= 0, vectors.reshape(-1, vectors.shape[-1]), 1.0))
        scores = np.einsum("qnd,qd->qn", flat.reshape(vectors.shape), queries)
        scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
        if fetch == index.ntotal or (previous is not None and np.array_equal(previous, found[1])):
            return found
        previous, fetch = found[1], min(index.ntotal, 2 * fetch)
