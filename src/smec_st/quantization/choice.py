"""The best pair of size and precision for a number of bytes, chosen on held-out queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from smec_st.data import DataError, Qrels, Table, places_among, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval, exact_search, neighbour_overlap
from smec_st.maps import FoldedMap
from smec_st.quantization.codecs import Binary, Codec, Plain
from smec_st.quantization.head import Head
from smec_st.quantization.interface import CompressorLike
from smec_st.quantization.starts import calibrate_int8, itq_rotation, product_codes, sample_rows
from smec_st.quantization.training import LastStage, train_codes

Like = TypeVar("Like", bound=CompressorLike)

#: Rows that codes are fitted on, and documents that a choice is made among.
FIT_ROWS, JUDGED_ROWS, ASKING_ROWS = 8_000, 50_000, 500
WIDEST_GROUP, NEIGHBORS = 16, 10
#: More codes than this are not rotated: it takes long and gains nothing.
MOST_ROTATED = 48
SHARES = (0.5, 1.0)


@dataclass(frozen=True)
class Judge:
    """Queries that tell two ways to store documents apart.

    Few held-out queries cannot tell close ones apart, so among those that they do not place below the best (by more
    than one standard error of the paired difference) the one wins that ranks most like the compressor's own floats do,
    which any number of queries without judgements can say.

    Attributes:
        corpus: Documents that are searched, ``(N, D)``.
        queries: Queries with judgements, ``(Q, D)``; none without judgements.
        qrels: Their judgements, or None.
        own: Document that is the query itself, -1 for none, ``(Q,)``.
        asking: Queries without judgements, ``(A, D)``.
        near: What they should find: their ten nearest by the compressor's floats, ``(A, 10)``.
    """

    corpus: np.ndarray
    queries: np.ndarray
    qrels: Qrels | None
    own: np.ndarray
    asking: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, table: Table, dev: Qrels | None, seed: int, folded: FoldedMap) -> Judge:
        """At most :data:`JUDGED_ROWS` documents beside the relevant ones; queries ask, or documents where none are."""
        rows = sample_rows(table.corpus_size, seed, JUDGED_ROWS)
        local, own, ids = None, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        if dev is not None and len(dev.pairs):
            rows, judged = np.union1d(rows, dev.pairs[:, 1]), dev.query_rows
            ids = table.query_ids(judged)
            own = table.own(torch.from_numpy(ids)).numpy()
            own = places_among(rows, own)
            local = dev.renumbered(rows)
        others = np.arange(table.corpus_size, len(table)) if table.query_size else rows
        others = others[sample_rows(len(others), seed, ASKING_ROWS)]
        corpus, queries, asking = (table[torch.from_numpy(part)].numpy() for part in (rows, ids, others))
        near, _ = exact_search(folded.compress(corpus), folded.compress(asking), NEIGHBORS)
        return cls(corpus, queries, local, own, asking, near)

    def score(self, head: Head) -> tuple[np.ndarray, float]:
        """nDCG@10 of each judged query, ``(Q,)``; and the share of the ten nearest that are found."""
        documents = head.decode(head.encode(self.corpus))
        found, _ = exact_search(documents, head.queries(self.asking), NEIGHBORS)
        kept = float(neighbour_overlap(found, self.near).mean())
        if self.qrels is None:
            return np.zeros(0), kept
        asked = head.queries(self.queries)
        return evaluate_retrieval(documents, asked, self.qrels, ("ndcg@10",), self.own)["ndcg@10"], kept

    @staticmethod
    def best(scores: Sequence[tuple[np.ndarray, float]]) -> int:
        """Which of these wins; the first of equals."""
        kept = np.array([share for _, share in scores])
        if len(scores[0][0]) == 0:
            return int(kept.argmax())
        judged = np.stack([values for values, _ in scores])  # (heads, Q)
        behind = judged[judged.mean(axis=1).argmax()] - judged
        error = behind.std(axis=1) / np.sqrt(judged.shape[1])
        return int(np.where(behind.mean(axis=1) <= error, kept, -1).argmax())


@dataclass(frozen=True)
class CodesWanted:
    """What documents will be stored as, and the judgements that codes are trained on and chosen by.

    Attributes:
        bytes: Bytes per document.
        table: The backbone's vectors.
        train: Training judgements.
        held_out: Judgements of other queries; None where there are none, and neighbours choose alone.
    """

    bytes: int
    table: Table
    train: Qrels
    held_out: Qrels | None = None


def candidates(compressor: CompressorLike, corpus: np.ndarray, bytes: int, seed: int) -> Iterator[Head]:
    """Untrained ways to store a document in this many bytes, each with a size that the compressor serves.

    Args:
        compressor: Gives the sizes.
        corpus: Rows that codes are fitted on, ``(n, D)``.
        bytes: Bytes per document.
        seed: Random seed.
    """

    def serves(dim: int) -> bool:
        return _serves(compressor.dims, compressor.nested_dims, dim)

    for precision, dim in (("float32", bytes // 4), ("float16", bytes // 2)):
        plain = Plain(dim, precision)
        if plain.bytes == bytes and serves(dim):
            yield Head(compressor.map_for(dim), plain)
    sizes = _sizes_of_codes(compressor.dims, compressor.nested_dims, bytes)
    for dim, rotation, codec in _codes(lambda dim: compressor.map_for(dim).compress(corpus), sizes, bytes, seed):
        folded = compressor.map_for(dim)
        yield Head(folded, codec) if rotation is None else _rotated(folded, rotation, codec)


def _serves(dims: Sequence[int], nested: Sequence[int], dim: int) -> bool:
    """Whether a compressor of these sizes, descending, has vectors of ``dim`` numbers worth storing."""
    return dim in dims or (len(nested) > 1 and nested[-1] // 4 <= dim <= nested[0])


def _sizes_of_codes(dims: Sequence[int], nested: Sequence[int], bytes: int) -> list[tuple[str, int]]:
    """Precisions below float16, and the sizes that each stores in this many bytes."""
    whole = {dim - dim % bytes for dim in dims}  # a prefix, where the bytes do not divide a size
    found = [("int8", bytes), ("binary", 8 * bytes)]
    found += [("pq", dim) for dim in sorted(whole) if 1 < dim // bytes <= WIDEST_GROUP]
    return [(precision, dim) for precision, dim in found if _serves(dims, nested, dim)]


def _codes(
    rows_of: Callable[[int], np.ndarray], sizes: Sequence[tuple[str, int]], bytes: int, seed: int
) -> Iterator[tuple[int, np.ndarray | None, Codec]]:
    """Size, rotation of the rows or None, and codec, fitted to the rows that ``rows_of`` returns for a size."""
    for precision, dim in sizes:
        rows = rows_of(dim)
        if precision == "int8":
            yield dim, None, calibrate_int8(rows)
        elif precision == "binary":
            yield dim, itq_rotation(rows, seed), Binary(None, dim)
        else:
            for rotate in (False, True) if bytes <= MOST_ROTATED else (False,):
                yield dim, *product_codes(rows, bytes, seed, rotate)


def check_storable(sizes: Sequence[int], bytes: int) -> None:
    """Raise if no prefix of nested vectors of these sizes has codes of this many bytes.

    Args:
        sizes: Sizes, in any order.
        bytes: Bytes per document.

    Raises:
        DataError: If nothing fits into so many bytes.
    """
    dims = sorted(sizes, reverse=True)
    if bytes < 1:
        raise DataError(f"a document needs at least 1 byte, got {bytes}.")
    if not _sizes_of_codes(dims, dims, bytes):
        sizes_named = ", ".join(map(str, dims))
        raise DataError(f"no size of {sizes_named} has int8, binary or product codes of {bytes} bytes; name another.")


def start_of_rounding(
    rows: np.ndarray, sizes: Sequence[int], bytes: int, seed: int
) -> tuple[np.ndarray | None, Codec] | None:
    """Choose the codes of this many bytes that keep most of the ten nearest neighbours of the widest floats.

    Args:
        rows: Documents as the widest size stores them, ``(n, d)``; at most :data:`FIT_ROWS` are needed.
        sizes: Sizes that are prefixes of ``d``, in any order.
        bytes: Bytes per document.
        seed: Random seed.

    Returns:
        The rotation of the rows or None, and the codec; or None where no codes fit.
    """
    dims = sorted(sizes, reverse=True)
    asking = sample_rows(len(rows), seed, ASKING_ROWS)

    def rows_of(dim: int) -> np.ndarray:
        return unit_rows(rows[:, :dim])

    near, _ = exact_search(rows_of(dims[0]), rows_of(dims[0])[asking], NEIGHBORS)
    best, most = None, -1.0
    for dim, rotation, codec in _codes(rows_of, _sizes_of_codes(dims, dims, bytes), bytes, seed):
        turned = rows_of(dim) if rotation is None else rows_of(dim) @ rotation
        found, _ = exact_search(codec.decode(codec.encode(turned)), turned[asking], NEIGHBORS)
        kept = float(neighbour_overlap(found, near).mean())
        if kept > most:
            best, most = (rotation, codec), kept
    return best


def _rotated(folded: FoldedMap, rotation: np.ndarray, codec: Codec) -> Head:
    """A rotation keeps lengths, so it becomes part of the map."""
    return Head(folded.ending(rotation.T @ folded.layers[-1].weight), codec, has_own_map=True)


def add_best(
    compressor: Like,
    table: Table,
    train: Qrels | None,
    dev: Qrels | None,
    bytes: int,
    seed: int,
    unlabelled_queries: Sequence[int] | np.ndarray | None,
    config: LastStage | None = None,
) -> Like:
    """Return a compressor with the best head of this many bytes, in place of any other head of that size.

    Args:
        compressor: Gives sizes and maps.
        table: Corpus and queries.
        train: Training judgements, or None.
        dev: Held-out judgements, or None.
        bytes: Bytes per document.
        seed: Random seed.
        unlabelled_queries: Query rows to train on without judgements; None for all.
        config: Settings of the last stage.

    Raises:
        DataError: If nothing fits into so many bytes.
    """
    if bytes < 1:
        raise DataError(f"a document needs at least 1 byte, got {bytes}.")
    judge = Judge.of(table, dev, seed, compressor.map_for(None))
    rows = table[torch.from_numpy(sample_rows(table.corpus_size, seed, FIT_ROWS))].numpy()
    heads = [(head, 0.0) for head in candidates(compressor, rows, bytes, seed)]
    if not heads:
        raise DataError(
            f"no size of this compressor ({', '.join(map(str, compressor.dims))}) can be stored in {bytes} bytes."
        )
    scores = [judge.score(head) for head, _ in heads]
    start = heads[judge.best(scores)][0]
    if not isinstance(start.codec, Plain):
        asking = np.arange(table.query_size) if unlabelled_queries is None else np.asarray(unlabelled_queries)
        settings = config or LastStage(seed=seed)
        # With labels the floats of the widest size know better than the full width which neighbours to keep.
        teacher = None if train is None else compressor.map_for(None)
        at = train_codes(table, start.folded, start.codec, train, asking, settings, teacher)
        trained = [(Head(*at(share), has_own_map=True), share) for share in SHARES]
        heads += trained
        scores += [judge.score(head) for head, _ in trained]
    winner = judge.best(scores)
    tried: list[dict[str, Any]] = []
    for (head, share), (values, kept) in zip(heads, scores, strict=True):
        tried.append({**_label(head), "trained": share, "kept_neighbors": kept})
        if len(values):
            tried[-1]["ndcg@10"] = float(values.mean())
    info = {**tried[winner], "for_bytes": bytes, "tried": tried}
    best = heads[winner][0]
    chosen = Head(best.folded, best.codec, best.has_own_map, info)
    kept_heads = [head for head in compressor.heads if head.info.get("for_bytes") != bytes]
    return type(compressor)(compressor.maps, compressor.info, (*kept_heads, chosen))


def _label(head: Head) -> dict[str, str | int]:
    return {"precision": head.precision, "dim": head.dim, "bytes": head.bytes}
