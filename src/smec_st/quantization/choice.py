"""The best pair of size and precision for a number of bytes or a limit, chosen on held-out queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from smec_st.data import DataError, Qrels, Table, places_among, unit_rows
from smec_st.evaluation.limits import Limit, Pair
from smec_st.evaluation.metrics import evaluate_retrieval, exact_search, neighbour_overlap
from smec_st.maps import FoldedMap
from smec_st.quantization.codecs import PLAIN, Binary, Codec, Plain
from smec_st.quantization.head import Head
from smec_st.quantization.interface import CompressorLike
from smec_st.quantization.pairs import pairs_in, pairs_to_try
from smec_st.quantization.starts import balanced_rotation, calibrate_int8, itq_rotation, product_codes, sample_rows
from smec_st.quantization.training import LastStage, train_codes

Like = TypeVar("Like", bound=CompressorLike)

#: Rows that codes are fitted on, and documents that a choice is made among.
FIT_ROWS, JUDGED_ROWS, ASKING_ROWS = 8_000, 50_000, 500
NEIGHBORS = 10


@dataclass(frozen=True)
class Judge:
    """Queries that tell two ways to store documents apart.

    A few held-out queries cannot separate close candidates. Those whose mean is within one standard error of the best
    (of the paired difference) are compared again, by how many of the documents nearest to the compressor's floats they
    find. This needs no judgements, so any number of queries can be used.

    Attributes:
        corpus: Documents that are searched, ``(N, D)``.
        queries: Queries with judgements, ``(Q, D)``; none without judgements.
        qrels: Their judgements, or None.
        own: Document that is the query itself, -1 for none, ``(Q,)``.
        unlabelled: Queries without judgements, ``(A, D)``.
        near: What they should find: their ten nearest by the compressor's floats, ``(A, 10)``.
    """

    corpus: np.ndarray
    queries: np.ndarray
    qrels: Qrels | None
    own: np.ndarray
    unlabelled: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, table: Table, dev: Qrels | None, seed: int, folded: FoldedMap) -> Judge:
        """Draw at most :data:`JUDGED_ROWS` further documents; without queries, documents stand in for them."""
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
        corpus, queries, unlabelled = (table[torch.from_numpy(part)].numpy() for part in (rows, ids, others))
        near, _ = exact_search(folded.compress(corpus), folded.compress(unlabelled), NEIGHBORS)
        return cls(corpus, queries, local, own, unlabelled, near)

    def score(self, head: Head) -> tuple[np.ndarray, float]:
        """nDCG@10 of each judged query, ``(Q,)``; and the share of the ten nearest that are found."""
        documents = head.decode(head.encode(self.corpus))
        found, _ = exact_search(documents, head.queries(self.unlabelled), NEIGHBORS)
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


def candidates(compressor: CompressorLike, corpus: np.ndarray, pairs: Sequence[Pair], seed: int) -> Iterator[Head]:
    """Untrained ways to store a document as these pairs say.

    Args:
        compressor: Gives the maps.
        corpus: Rows that codes are fitted on, ``(n, D)``.
        pairs: Sizes and precisions that the compressor serves.
        seed: Random seed.
    """
    for dim, precision, size in pairs:
        folded = compressor.map_for(dim)
        if precision in PLAIN:
            yield Head(folded, Plain(dim, precision))
            continue
        rotation, codec = _codec(folded.compress(corpus), precision, size, seed)
        if rotation is None:
            yield Head(folded, codec)
        else:  # it keeps lengths, so it becomes part of the map
            yield Head(folded.ending(rotation.T @ folded.layers[-1].weight), codec, has_own_map=True)


def _codec(rows: np.ndarray, precision: str, bytes: int, seed: int) -> tuple[np.ndarray | None, Codec]:
    """Fit a codec of one precision to rows, ``(n, d)``; the rotation that goes before it, or None, comes first."""
    if precision == "int8":
        return None, calibrate_int8(rows)
    if precision == "binary":
        return itq_rotation(rows, seed), Binary(None, rows.shape[1])
    rotation = balanced_rotation(rows, bytes)
    return rotation, product_codes(rows @ rotation, bytes, seed)


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
        The rotation of the rows or None, and the codec; None if no codec takes this number of bytes.
    """
    dims = sorted(sizes, reverse=True)
    asking = sample_rows(len(rows), seed, ASKING_ROWS)
    widest = unit_rows(rows[:, : dims[0]])
    near, _ = exact_search(widest, widest[asking], NEIGHBORS)
    best, most = None, -1.0
    for dim, precision, _ in pairs_in(bytes, dims, dims):
        if precision in PLAIN:
            continue
        floats = unit_rows(rows[:, :dim])
        rotation, codec = _codec(floats, precision, bytes, seed)
        turned = floats if rotation is None else floats @ rotation
        found, _ = exact_search(codec.decode(codec.encode(turned)), turned[asking], NEIGHBORS)
        kept = float(neighbour_overlap(found, near).mean())
        if kept > most:
            best, most = (rotation, codec), kept
    return best


def add_best(
    compressor: Like,
    table: Table,
    train: Qrels | None,
    dev: Qrels | None,
    bytes: int | None,
    seed: int,
    unlabelled_queries: Sequence[int] | np.ndarray | None,
    config: LastStage | None = None,
    limit: Limit | None = None,
) -> Like:
    """Return a compressor with the best head, in place of any other that was chosen for as many bytes.

    Args:
        compressor: Gives sizes and maps.
        table: Corpus and queries.
        train: Training judgements, or None.
        dev: Held-out judgements, or None.
        bytes: Bytes per document; None for what the limit allows.
        seed: Random seed.
        unlabelled_queries: Query rows to train on without judgements; None for all.
        config: Settings of the last stage.
        limit: What the head must keep to.

    Raises:
        DataError: If no size of the compressor can be stored so.
    """
    if table.corpus_size < 2:
        raise DataError("codes are chosen by neighbours: give at least two documents.")
    pairs = pairs_to_try(compressor.dims, compressor.nested_dims, limit, bytes)
    judge = Judge.of(table, dev, seed, compressor.map_for(None))
    rows = table[torch.from_numpy(sample_rows(table.corpus_size, seed, FIT_ROWS))].numpy()
    heads = list(candidates(compressor, rows, pairs, seed))
    scores = [judge.score(head) for head in heads]
    start = heads[judge.best(scores)]
    is_trained = [False] * len(heads)
    if not isinstance(start.codec, Plain):
        # With labels the compressor's widest vectors say better than the original ones which neighbours to keep.
        teacher = None if train is None else compressor.map_for(None)
        rows_of_queries = _training_queries(table, train, dev, unlabelled_queries)
        learned = train_codes(
            table, start.folded, start.codec, rows_of_queries, config or LastStage(seed=seed), teacher
        )
        heads.append(Head(*learned, has_own_map=True))
        scores.append(judge.score(heads[-1]))
        is_trained.append(True)
    winner = judge.best(scores)
    tried: list[dict[str, Any]] = []
    for head, trained, (values, kept) in zip(heads, is_trained, scores, strict=True):
        label = {"precision": head.precision, "dim": head.dim, "bytes": head.bytes}
        tried.append({**label, "trained": trained, "kept_neighbors": kept})
        if len(values):
            tried[-1]["ndcg@10"] = float(values.mean())
    best = heads[winner]
    info = {**tried[winner], "for_bytes": best.bytes, "tried": tried}
    if limit is not None:
        info["limit"] = str(limit)
    chosen = Head(best.folded, best.codec, best.has_own_map, info)
    kept_heads = [head for head in compressor.heads if head.info.get("for_bytes") != best.bytes]
    return type(compressor)(compressor.maps, compressor.info, (*kept_heads, chosen))


def _training_queries(
    table: Table, train: Qrels | None, dev: Qrels | None, queries: Sequence[int] | np.ndarray | None
) -> np.ndarray:
    """Query rows that codes are trained on, ``(q,)``: those named, or the judged ones, or all; none that choose."""
    if queries is None:
        queries = np.arange(table.query_size) if train is None else train.query_rows
    return np.setdiff1d(np.asarray(queries), [] if dev is None else dev.query_rows).astype(np.int64)
