"""The best pair of size and precision for a number of bytes, chosen on held-out queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from smec_st.data import DataError, Qrels, VectorTable
from smec_st.maps import FoldedMap
from smec_st.metrics import evaluate_retrieval, exact_search, neighbour_overlap
from smec_st.quantization.codecs import Binary, Codec, Plain
from smec_st.quantization.head import Head
from smec_st.quantization.starts import calibrate_int8, itq_rotation, product_codes, sample_rows
from smec_st.quantization.training import LastStage, train_codes

if TYPE_CHECKING:
    from smec_st.compressor import Compressor

#: Rows that codes are fitted on, and documents that a choice is made among.
FIT_ROWS, JUDGED_ROWS, ASKING_ROWS = 16_000, 50_000, 500
WIDEST_GROUP = 32
TRAINED = 1
SHARES = (0.5, 1.0)


@dataclass(frozen=True)
class Judge:
    """Held-out queries that tell two ways to store documents apart.

    Attributes:
        corpus: Documents that are searched, ``(N, D)``.
        queries: Queries, ``(Q, D)``.
        qrels: Their judgements; None to count the neighbours of full width that are found again.
        own: Document that is the query itself, -1 for none, ``(Q,)``.
    """

    corpus: np.ndarray
    queries: np.ndarray
    qrels: Qrels | None
    own: np.ndarray

    @classmethod
    def of(cls, table: VectorTable, dev: Qrels | None, seed: int) -> Judge:
        """At most :data:`JUDGED_ROWS` documents beside the relevant ones; without judgements, some documents ask."""
        rows = sample_rows(table.corpus_size, seed, JUDGED_ROWS)
        if dev is None or len(dev.pairs) == 0:
            asking = rows[sample_rows(len(rows), seed, ASKING_ROWS)]
            corpus, queries = (table[torch.from_numpy(part)].numpy() for part in (rows, asking))
            return cls(corpus, queries, None, np.searchsorted(rows, asking))
        rows, asking = np.union1d(rows, dev.pairs[:, 1]), dev.query_rows
        ids = torch.from_numpy(table.query_ids(asking))
        own = table.own(ids).numpy()
        at = np.where(np.isin(own, rows), np.searchsorted(rows, own), -1)
        local = Qrels(
            np.searchsorted(asking, dev.pairs[:, 0]),
            np.searchsorted(rows, dev.pairs[:, 1]),
            dev.grades[dev.grades > 0],
        )
        return cls(table[torch.from_numpy(rows)].numpy(), table[ids].numpy(), local, at)

    def score(self, head: Head) -> float:
        """nDCG@10, or the share of the ten nearest that are found again."""
        documents, asked = head.decode(head.encode(self.corpus)), head.queries(self.queries)
        if self.qrels is not None:
            scores = evaluate_retrieval(documents, asked, self.qrels, ("ndcg@10",), self.own)["ndcg@10"]
            return float(scores.mean())
        near, _ = exact_search(self.corpus, self.queries, 11)
        found, _ = exact_search(documents, asked, 11)
        return float(neighbour_overlap(found, near).mean())


def candidates(compressor: Compressor, corpus: np.ndarray, bytes: int, seed: int) -> Iterator[Head]:
    """Untrained ways to store a document in so many bytes, each with a size that the compressor serves.

    Args:
        compressor: Gives the sizes.
        corpus: Rows that codes are fitted on, ``(n, D)``.
        bytes: Bytes per document.
        seed: Of everything random.
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
    for dim in sorted({*compressor.dims, *nested}):
        if dim % bytes == 0 and 1 < dim // bytes <= WIDEST_GROUP:
            folded = compressor.map_for(dim)
            rows = folded.compress(corpus)
            for rotate in (False, True):
                rotation, codec = product_codes(rows, bytes, seed, rotate)
                yield Head(folded, codec) if rotation is None else _rotated(folded, rotation, codec)


def _rotated(folded: FoldedMap, rotation: np.ndarray, codec: Codec) -> Head:
    """A rotation keeps lengths, so it becomes part of the map."""
    return Head(folded.ending(rotation.T @ folded.layers[-1].weight), codec, has_own_map=True)


def add_best(
    compressor: Compressor,
    table: VectorTable,
    train: Qrels | None,
    dev: Qrels | None,
    bytes: int,
    seed: int,
    unlabelled_queries: Sequence[int] | np.ndarray | None,
    config: LastStage | None = None,
) -> Compressor:
    """A compressor that has the best head of so many bytes; it takes the place of any other of that many.

    Args:
        compressor: Gives sizes and maps.
        table: Corpus and queries.
        train: Training judgements, or None.
        dev: Held-out judgements, or None.
        bytes: Bytes per document.
        seed: Of everything random.
        unlabelled_queries: Query rows to train on without judgements; None for all.
        config: Settings of the last stage.

    Raises:
        DataError: If nothing fits into so many bytes.
    """
    if bytes < 1:
        raise DataError(f"a document needs at least 1 byte, got {bytes}.")
    judge = Judge.of(table, dev, seed)
    rows = table[torch.from_numpy(sample_rows(table.corpus_size, seed, FIT_ROWS))].numpy()
    found = [
        (judge.score(head), -number, head) for number, head in enumerate(candidates(compressor, rows, bytes, seed))
    ]
    if not found:
        raise DataError(
            f"no size of this compressor ({', '.join(map(str, compressor.dims))}) can be stored in {bytes} bytes."
        )
    tried = [{**_label(head), "score": score, "trained": 0.0} for score, _, head in found]
    found.sort(key=lambda entry: entry[:2], reverse=True)
    best_score, _, best = found[0]
    share_of_best = 0.0
    asking = np.arange(table.query_size) if unlabelled_queries is None else np.asarray(unlabelled_queries)
    trainable = [head for _, _, head in found if not isinstance(head.codec, Plain)][:TRAINED]
    for head in trainable:
        at = train_codes(table, head.folded, head.codec, train, asking, config or LastStage(seed=seed))
        for share in SHARES:
            folded, codec = at(share)
            moved = Head(folded, codec, has_own_map=True)
            score = judge.score(moved)
            tried.append({**_label(moved), "score": score, "trained": share})
            if score > best_score:
                best_score, best, share_of_best = score, moved, share
    measure = "ndcg@10" if judge.qrels is not None else "overlap@10"
    info = {"for_bytes": bytes, "measure": measure, "score": best_score, "trained": share_of_best, "tried": tried}
    chosen = Head(best.folded, best.codec, best.has_own_map, info)
    kept = [head for head in compressor.heads if head.info.get("for_bytes") != bytes]
    return type(compressor)(compressor._maps, compressor.info, (*kept, chosen))


def _label(head: Head) -> dict[str, str | int]:
    return {"precision": head.precision, "dim": head.dim, "bytes": head.bytes}
