"""The loop that the trained rivals share: Adam, a look at held-out queries now and then, the best weights kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.baselines.interface import TrainingData, Transform
from smec_st.data import DataError, unit_rows
from smec_st.losses import Relevance
from smec_st.metrics import evaluate_retrieval


def train(
    parameters: Iterable[nn.Parameter],
    step: Callable[[int], Tensor],
    score: Callable[[], float] | None,
    *,
    steps: int,
    learning_rate: float,
    patience: int,
    check_every: int = 50,
    weight_decay: float = 0.0,
    cosine: bool = False,
) -> int:
    """Minimise ``step``, and end at the weights that ``score`` liked best.

    Args:
        parameters: What is trained.
        step: Number of the step to its loss.
        score: Quality of the current weights, higher is better; None to run all steps and keep the last weights.
        steps: Steps at most.
        learning_rate: Of Adam; AdamW when ``weight_decay`` is above 0.
        patience: Stop after so many steps without a better score.
        check_every: Steps between scores. The start is scored too.
        weight_decay: Decoupled weight decay.
        cosine: Let the learning rate fall to 0 along a cosine; constant otherwise.

    Returns:
        Steps run.

    Raises:
        FloatingPointError: If the loss is no longer finite.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    best, kept, best_step = -np.inf if score is None else score(), _copy(trained), 0
    done = 0
    while done < steps:
        loss = step(done)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {done}; lower `learning_rate`.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        done += 1
        if score is not None and (done % check_every == 0 or done == steps):
            now = score()
            if now > best:
                best, kept, best_step = now, _copy(trained), done
            if done - best_step >= patience:
                break
    if score is not None:
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
    return done


def _copy(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


class DevScore:
    """Mean nDCG@10 over the sizes, on held-out queries: what early stopping and choices of settings look at.

    Args:
        data: Its ``dev`` must be there.
        dims: Sizes.
        max_queries: Queries scored, drawn once.
        max_corpus: Documents scored against: the relevant ones, and at most this many others, drawn once.
        seed: Seeds both draws.
    """

    def __init__(
        self,
        data: TrainingData,
        dims: Sequence[int],
        max_queries: int = 300,
        max_corpus: int = 5000,
        seed: int = 0,
    ) -> None:
        if data.dev is None:
            raise ValueError("Held-out judgements are needed to score by.")
        rng = np.random.default_rng(seed)
        dev = data.dev.of_queries(rng.permutation(data.dev.query_rows)[:max_queries])
        table, asked = data.table, dev.query_rows
        own = table.own(torch.from_numpy(table.query_ids(asked))).numpy()
        drawn = rng.permutation(table.corpus_size)[:max_corpus]
        rows = np.unique(np.concatenate([drawn, dev.pairs[:, 1], own[own >= 0]]))
        self.dims = tuple(dims)
        self._corpus = table[torch.from_numpy(rows)].numpy()
        self._queries = table[torch.from_numpy(table.query_ids(asked))].numpy()
        self._own = np.where(own >= 0, np.searchsorted(rows, own), -1)
        self._qrels = dev.renumbered(rows)

    def __call__(self, transform: Transform) -> float:
        """The score of a transform ``(vectors, dim) -> (n, dim)``."""
        return float(
            np.mean([self._score(transform(self._corpus, d), transform(self._queries, d)) for d in self.dims])
        )

    def of_prefixes(self, mapping: Callable[[np.ndarray], np.ndarray]) -> float:
        """The score of a map whose first ``m`` outputs are the ``m``-dimensional vector, mapped once for all sizes."""
        corpus, queries = mapping(self._corpus), mapping(self._queries)
        return self(lambda vectors, dim: unit_rows((corpus if vectors is self._corpus else queries)[:, :dim]))

    def _score(self, corpus: np.ndarray, queries: np.ndarray) -> float:
        scores = evaluate_retrieval(corpus, queries, self._qrels, ("ndcg@10",), own_document=self._own)
        return float(scores["ndcg@10"].mean())


def dev_score(data: TrainingData, dims: Sequence[int]) -> DevScore | None:
    """:class:`DevScore`, or None when nothing is held out."""
    return None if data.dev is None else DevScore(data, dims)


class Batches:
    """Row numbers ``0 .. count-1`` in random order, pass after pass, ``size`` at a time.

    Args:
        count: Rows.
        size: Rows per batch, cut to ``count``.
        seed: Of the order.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self._count, self._size = count, min(size, count)
        self._rng = np.random.default_rng(seed)
        self._left = np.zeros(0, dtype=np.int64)

    def next(self) -> np.ndarray:
        """The next batch, ``(size,)``; its rows differ."""
        if len(self._left) < self._size:
            self._left = self._rng.permutation(self._count)
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch


@dataclass(frozen=True)
class Pool:
    """Queries, and the documents that a step compares them with: their own relevant ones first, then others.

    Attributes:
        query_rows: Row ids in the table, ``(B,)``.
        document_rows: Distinct row ids, ``(C,)``.
        positives: How many of the documents come from the batch's pairs.
        pair: Where each query's document of the batch stands, ``(B,)``.
        grades: ``(B, C)``.
        same: True where a document is the query itself, and takes no part, ``(B, C)``.
    """

    query_rows: Tensor
    document_rows: Tensor
    positives: int
    pair: Tensor
    grades: Tensor
    same: Tensor


class Pools:
    """Relevant pairs in random order, each batch beside further documents.

    Args:
        data: Its training judgements must be there.
        batch_size: Pairs per step.
        others: Further documents per step.
        seed: Of both orders.
        method: Who asks, for the message.

    Raises:
        DataError: If there is no relevant pair.
    """

    def __init__(self, data: TrainingData, batch_size: int, others: int, seed: int, method: str) -> None:
        if data.train is None or len(data.train.pairs) == 0:
            raise DataError(f"{method} needs training judgements.")
        self._table, self._pairs = data.table, data.train.pairs
        self._relevance = Relevance(data.train, data.table)
        self._batches = Batches(len(self._pairs), batch_size, seed)
        self._others = Batches(data.table.corpus_size, others, seed + 1)

    def next(self) -> Pool:
        """The next batch and its documents."""
        chosen = self._pairs[self._batches.next()]
        positives, pair = np.unique(chosen[:, 1], return_inverse=True)
        others = self._others.next()
        query_rows = torch.from_numpy(self._table.query_ids(chosen[:, 0]))
        document_rows = torch.from_numpy(np.concatenate([positives, others[~np.isin(others, positives)]]))
        return Pool(
            query_rows=query_rows,
            document_rows=document_rows,
            positives=len(positives),
            pair=torch.from_numpy(pair),
            grades=self._relevance(query_rows, document_rows),
            same=document_rows == self._table.own(query_rows).unsqueeze(1),
        )
