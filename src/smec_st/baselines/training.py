"""The loop that the trained rivals share: Adam, a look at held-out queries now and then, the best weights kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from smec_st.baselines.interface import TrainingData, Transform
from smec_st.data import Qrels, unit_rows
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
        self._qrels = Qrels(
            np.searchsorted(asked, dev.pairs[:, 0]),
            np.searchsorted(rows, dev.pairs[:, 1]),
            dev.grades[dev.grades > 0],
        )

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
