"""Codecs as FAISS indexes: the same codes, compared in FAISS."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.vectors import unit_rows
from smec_st.quantization.codecs import Binary, Codec, Int8, Plain, Product
from smec_st.system.errors import DataError
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from faiss import Index

KINDS = ("flat", "ivf", "hnsw")
NEIGHBOURS = 32  # M of HNSW
CONSTRUCTION = 100  # efConstruction
CENTROIDS = 256  # of one byte

Make = Callable[[str, tuple[Any, ...], int], Any]  # class, arguments after the width, and metric to an index


def faiss_index(codec: Codec, kind: str = "flat", metric: str = "ip", sample: np.ndarray | None = None) -> Index:
    """Make an empty FAISS index that stores the codes of a codec; see :meth:`Head.to_faiss`."""
    faiss = load_optional("faiss", "a FAISS index")
    if kind not in KINDS or metric not in ("ip", "l2"):
        raise DataError(f"kinds are {', '.join(KINDS)} and metrics ip and l2, got {kind!r} and {metric!r}.")
    if kind == "hnsw" and isinstance(codec, (Binary, Product)):
        metric = "l2"  # FAISS has no graph over inner products of product codes
    measure = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    make, before, dim = _storage(faiss, codec)
    if kind == "flat":
        index = make("Index", (), measure)
    elif kind == "hnsw":
        index = make("IndexHNSW", (NEIGHBOURS,), measure)
        index.hnsw.efConstruction = CONSTRUCTION
    else:
        if sample is None:
            raise DataError("inverted lists are trained: give a sample of vectors.")
        rows = np.ascontiguousarray(sample, dtype=np.float32)
        rows = rows if before is None else before.apply(rows)
        lists = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 39))
        index = _inverted(faiss, make, rows, lists, dim, measure)
    whole: Index = index if before is None else faiss.IndexPreTransform(before, index)
    return whole


def _inverted(faiss: ModuleType, make: Make, rows: np.ndarray, lists: int, dim: int, measure: int) -> Any:
    """Make inverted lists whose centres are trained on these rows, and whose codes are not of residuals."""
    means = faiss.Kmeans(dim, lists, niter=10, min_points_per_centroid=1, max_points_per_centroid=64, seed=0)
    means.train(rows)
    coarse = faiss.IndexFlat(dim, measure)
    coarse.add(means.centroids)
    index = make("IndexIVF", (coarse, lists), measure)
    index.own_fields = True
    coarse.this.disown()
    index.is_trained = True
    return index


def _storage(faiss: ModuleType, codec: Codec) -> tuple[Make, Any, int]:
    """Return what makes an index of a kind, the transform before it or None, and the width of what it stores."""
    if isinstance(codec, Int8):
        dim, trained = codec.dim, np.concatenate([codec.low - codec.step / 2, 255 * codec.step]).astype(np.float32)
        return _scalar(faiss, dim, faiss.ScalarQuantizer.QT_8bit, trained), None, dim
    if isinstance(codec, Plain):
        dim = codec.dim
        kind = faiss.ScalarQuantizer.QT_fp16
        return (_flat(faiss, dim) if codec.precision == "float32" else _scalar(faiss, dim, kind, None)), None, dim
    if isinstance(codec, Binary):
        return _product(faiss, _sign_centroids(codec)), _rotation(faiss, codec), 8 * codec.bytes
    if isinstance(codec, Product):
        centroids = codec.centroids
        missing = CENTROIDS - centroids.shape[1]  # of a tiny corpus; too far away to be the code of anything
        centroids = np.pad(centroids, ((0, 0), (0, missing), (0, 0)), constant_values=1e3)
        return _product(faiss, centroids), None, codec.dim
    raise TypeError(f"no FAISS index for {type(codec).__name__}.")


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


def _flat(faiss: ModuleType, dim: int) -> Make:
    def make(name: str, before: tuple[Any, ...], measure: int) -> Any:
        if name == "Index":
            return faiss.IndexFlat(dim, measure)
        if name == "IndexHNSW":
            return faiss.IndexHNSWFlat(dim, *before, measure)
        coarse, lists = before
        return faiss.IndexIVFFlat(coarse, dim, lists, measure)

    return make


def _scalar(faiss: ModuleType, dim: int, kind: int, trained: np.ndarray | None) -> Make:
    def make(name: str, before: tuple[Any, ...], measure: int) -> Any:
        if name == "Index":
            index = storage = faiss.IndexScalarQuantizer(dim, kind, measure)
        elif name == "IndexHNSW":
            index = faiss.IndexHNSWSQ(dim, kind, *before, measure)
            storage = faiss.downcast_index(index.storage)
        else:
            coarse, lists = before
            index = storage = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, kind, measure, False)
        if trained is not None:
            faiss.copy_array_to_vector(trained, storage.sq.trained)
        index.is_trained = storage.is_trained = True
        return index

    return make


def _product(faiss: ModuleType, centroids: np.ndarray) -> Make:
    groups, _, width = centroids.shape

    def make(name: str, before: tuple[Any, ...], measure: int) -> Any:
        if name == "Index":
            index = storage = faiss.IndexPQ(groups * width, groups, 8, measure)
        elif name == "IndexHNSW":
            index = faiss.IndexHNSWPQ(groups * width, groups, *before, 8)
            storage = faiss.downcast_index(index.storage)
        else:
            coarse, lists = before
            index = storage = faiss.IndexIVFPQ(coarse, groups * width, lists, groups, 8, measure)
            index.by_residual = False
        faiss.copy_array_to_vector(np.ascontiguousarray(centroids, dtype=np.float32).ravel(), storage.pq.centroids)
        if name == "IndexHNSW":
            storage.pq.compute_sdc_table()
        index.is_trained = storage.is_trained = True
        return index

    return make


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
