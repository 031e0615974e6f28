"""The best pair of size and precision for a number of bytes, chosen on held-out queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from smec_st.data import DataError, Qrels, VectorTable, places_among
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
    def of(cls, table: VectorTable, dev: Qrels | None, seed: int, folded: FoldedMap) -> Judge:
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


def candidates(compressor: CompressorLike, corpus: np.ndarray, bytes: int, seed: int) -> Iterator[Head]:
    """Untrained ways to store a document in this many bytes, each with a size that the compressor serves.

    Args:
        compressor: Gives the sizes.
        corpus: Rows that codes are fitted on, ``(n, D)``.
        bytes: Bytes per document.
        seed: Random seed.
    """
    nested = compressor.nested_dims

    def serves(dim: int) -> bool:
        return dim in compressor.dims or (len(nested) > 1 and nested[-1] // 4 <= dim <= nested[0])

    for precision, dim in (("float32", bytes // 4), ("float16", bytes // 2)):
        plain = Plain(dim, precision)
        if plain.bytes == bytes and serves(dim):
            yield Head(compressor.map_for(dim), plain)
    if serves(bytes):
        folded = compressor.map_for(bytes)
        yield Head(folded, calibrate_int8(folded.compress(corpus)))
    if serves(8 * bytes):
        folded = compressor.map_for(8 * bytes)
        yield _rotated(folded, itq_rotation(folded.compress(corpus), seed), Binary(None, 8 * bytes))
    whole = {dim - dim % bytes for dim in compressor.dims}  # a prefix, where the bytes do not divide a size
    for dim in sorted(whole):
        if 1 < dim // bytes <= WIDEST_GROUP and serves(dim):
            folded = compressor.map_for(dim)
            rows = folded.compress(corpus)
            for rotate in (False, True) if bytes <= MOST_ROTATED else (False,):
                rotation, codec = product_codes(rows, bytes, seed, rotate)
                yield Head(folded, codec) if rotation is None else _rotated(folded, rotation, codec)


def _rotated(folded: FoldedMap, rotation: np.ndarray, codec: Codec) -> Head:
    """A rotation keeps lengths, so it becomes part of the map."""
    return Head(folded.ending(rotation.T @ folded.layers[-1].weight), codec, has_own_map=True)


def add_best(
    compressor: Like,
    table: VectorTable,
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
        DataError: If nothing fits into this many bytes.
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
        unlabelled = np.arange(table.query_size) if unlabelled_queries is None else np.asarray(unlabelled_queries)
        settings = config or LastStage(seed=seed)
        # With labels the floats of the widest size know better than the full width which neighbours to keep.
        teacher = None if train is None else compressor.map_for(None)
        at = train_codes(table, start.folded, start.codec, train, unlabelled, settings, teacher)
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
