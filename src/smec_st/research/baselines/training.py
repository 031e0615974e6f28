"""The training loop of the trained baselines, their validation score, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.data import DataError, places_among, unit_rows
from smec_st.evaluation.metrics import evaluate_retrieval
from smec_st.evaluation.untrained import Transform
from smec_st.losses.relevance import Relevance
from smec_st.research.baselines.interface import TrainingData

MOST_QUERIES = 300  # held out, that a score is computed on; sampled once

Mapping = Callable[[np.ndarray], np.ndarray]


def train(
    parameters: Iterable[nn.Parameter],
    step: Callable[[], Tensor],
    score: Callable[[], float] | None,
    *,
    steps: int,
    learning_rate: float,
    patience: int,
    check_every: int = 50,
    weight_decay: float = 0.0,
    cosine: bool = False,
) -> int:
    """Minimise ``step`` with Adam, and restore the weights with the best ``score``.

    Args:
        parameters: The parameters to train.
        step: Computes the loss of the next step.
        score: Quality of the current weights, higher is better; None to run all steps and keep the last weights.
        steps: Maximum number of steps.
        learning_rate: Learning rate of Adam; AdamW when ``weight_decay`` is above 0.
        patience: Stop after this many steps without a better score.
        check_every: Steps between scores. The initial weights are scored too.
        weight_decay: Decoupled weight decay.
        cosine: Decay the learning rate to 0 along a cosine; it is constant otherwise.

    Returns:
        The number of steps that were run.

    Raises:
        FloatingPointError: If the loss is no longer finite.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    best, best_weights, best_step = -np.inf if score is None else score(), _copy(parameters), 0
    done = 0
    while done < steps:
        loss = step()
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {done}; lower `learning_rate`.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        done += 1
        if score is not None and (done % check_every == 0 or done == steps):
            current = score()
            if current > best:
                best, best_weights, best_step = current, _copy(parameters), done
            if done - best_step >= patience:
                break
    if score is not None:
        with torch.no_grad():
            for parameter, value in zip(parameters, best_weights, strict=True):
                parameter.copy_(value)
    return done


def _copy(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


class DevScore:
    """Mean nDCG@10 over the sizes on held-out queries, for early stopping and the choice of settings.

    Args:
        data: Training data whose ``dev`` is not None.
        dims: Sizes.
        max_corpus: Maximum number of documents that are sampled, once, in addition to the relevant ones.
    """

    def __init__(self, data: TrainingData, dims: Sequence[int], max_corpus: int = 5000) -> None:
        if data.dev is None:
            raise ValueError("`data.dev` must hold judgements to compute a score, got None.")
        rng = np.random.default_rng(0)
        dev = data.dev.of_queries(rng.permutation(data.dev.query_rows)[:MOST_QUERIES])
        table = data.table
        query_ids = torch.from_numpy(table.query_ids(dev.query_rows))
        own = table.own(query_ids).numpy()
        sampled = rng.permutation(table.corpus_size)[:max_corpus]
        rows = np.unique(np.concatenate([sampled, dev.pairs[:, 1], own[own >= 0]]))
        self.dims = tuple(dims)
        self._corpus = table[torch.from_numpy(rows)].numpy()
        self._queries = table[query_ids].numpy()
        self._own_document = places_among(rows, own)
        self._qrels = dev.renumbered(rows)

    def __call__(self, transform: Transform) -> float:
        """Score a transform that maps ``(vectors, dim)`` to ``(n, dim)``."""
        return float(
            np.mean([self._score(transform(self._corpus, d), transform(self._queries, d)) for d in self.dims])
        )

    def of_prefixes(self, mapping: Mapping) -> float:
        """Score the prefixes of a mapping's output; the mapping is applied once for all sizes."""
        corpus, queries = mapping(self._corpus), mapping(self._queries)
        return self(lambda vectors, dim: unit_rows((corpus if vectors is self._corpus else queries)[:, :dim]))

    def _score(self, corpus: np.ndarray, queries: np.ndarray) -> float:
        scores = evaluate_retrieval(corpus, queries, self._qrels, ("ndcg@10",), own_document=self._own_document)
        return float(scores["ndcg@10"].mean())


def dev_score(data: TrainingData, dims: Sequence[int]) -> DevScore | None:
    """Return a :class:`DevScore`, or None when no queries are held out."""
    return None if data.dev is None else DevScore(data, dims)


def prefix_score(data: TrainingData, dims: Sequence[int], mapping: Mapping) -> Callable[[], float] | None:
    """Return a function that scores the current ``mapping``, or None when no queries are held out."""
    held_out = dev_score(data, dims)
    return None if held_out is None else lambda: held_out.of_prefixes(mapping)


class Batches:
    """Row numbers ``0 .. count-1`` in random order, ``size`` at a time, one pass after the other.

    Args:
        count: Number of rows.
        size: Rows per batch, at most ``count``.
        seed: Random seed of the order.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self._count, self._size = count, min(size, count)
        self._rng = np.random.default_rng(seed)
        self._left = np.zeros(0, dtype=np.int64)

    def next(self) -> np.ndarray:
        """Return the next batch of distinct rows, ``(size,)``."""
        if len(self._left) < self._size:
            self._left = self._rng.permutation(self._count)
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch


@dataclass(frozen=True)
class Pool:
    """The queries of a step and the documents they are compared with: first the relevant ones, then others.

    Attributes:
        query_rows: Row ids in the table, ``(B,)``.
        document_rows: Distinct row ids, ``(C,)``.
        positives: Number of leading documents that come from the pairs of the batch.
        positive: Column of each query's relevant document, ``(B,)``.
        grades: Relevance grades, ``(B, C)``.
        excluded: True where a document is the query itself and must be ignored, ``(B, C)``.
    """

    query_rows: Tensor
    document_rows: Tensor
    positives: int
    positive: Tensor
    grades: Tensor
    excluded: Tensor


class Pools:
    """Relevant pairs in random order, each batch with further random documents.

    Args:
        data: Training data whose ``train`` is not None.
        batch_size: Pairs per step.
        extra_documents: Further documents per step.
        seed: Random seed of both orders.
        method: Name of the method, for the error message.

    Raises:
        DataError: If there is no relevant pair.
    """

    def __init__(self, data: TrainingData, batch_size: int, extra_documents: int, seed: int, method: str) -> None:
        if data.train is None or len(data.train.pairs) == 0:
            raise DataError(f"{method} needs training judgements.")
        self._table, self._pairs = data.table, data.train.pairs
        self._relevance = Relevance(data.train, data.table)
        self._batches = Batches(len(self._pairs), batch_size, seed)
        self._extra = Batches(data.table.corpus_size, extra_documents, seed + 1)

    def next(self) -> Pool:
        """Return the next batch and its documents."""
        pairs = self._pairs[self._batches.next()]
        positives, positive = np.unique(pairs[:, 1], return_inverse=True)
        extra = self._extra.next()
        query_rows = torch.from_numpy(self._table.query_ids(pairs[:, 0]))
        document_rows = torch.from_numpy(np.concatenate([positives, extra[~np.isin(extra, positives)]]))
        return Pool(
            query_rows=query_rows,
            document_rows=document_rows,
            positives=len(positives),
            positive=torch.from_numpy(positive),
            grades=self._relevance(query_rows, document_rows),
            excluded=document_rows == self._table.own(query_rows).unsqueeze(1),
        )
