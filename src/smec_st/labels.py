"""Whether judgements are worth training on, and how they are shared between training and the guard."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from smec_st.data import Qrels, VectorTable
from smec_st.data.qrels import MIN_HELD_OUT

SAMPLE = 500  # queries looked at
MOST_DOCUMENTS = 50_000
SURE = 2.0  # standard errors
ENOUGH = 50  # queries to hold out once; fewer leave the choice to chance


class LabelsWarning(UserWarning):
    """Judgements were given and are not trained on."""


@dataclass(frozen=True)
class Labels:
    """Judgements as a fit uses them.

    Attributes:
        train: What the supervised term learns from; None to train without labels.
        held_out: What chooses how far each stage goes; None for nothing.
        folds: Parts of ``train``, each held out in turn, where those choose together and not ``held_out``.
        note: What is unusual, to be told: why judgements are not trained on, for instance; empty otherwise.
        quality: Mean nDCG@10 of full-width search by the training judgements; None where it was not measured.
    """

    train: Qrels | None
    held_out: Qrels | None
    note: str = ""
    folds: tuple[Qrels, ...] = ()
    quality: float | None = None

    def one_split(self) -> tuple[Qrels, Qrels] | None:
        """What to train on and what to choose by, for a trial: of the folds, the first is held out."""
        if self.train is None or not self.folds:
            return None if self.train is None or self.held_out is None else (self.train, self.held_out)
        held = self.folds[0]
        return self.train.of_queries(np.setdiff1d(self.train.query_rows, held.query_rows)), held


def share_labels(
    table: VectorTable, train: Qrels, dev: Qrels | None, share: float, seed: int, folds: int = 0
) -> Labels:
    """Judgements for training and for the guard.

    Few judged queries only choose: a map trained on them keeps their documents and loses the others. Where the share
    held out would be fewer than :data:`ENOUGH`, all choose by cross-validation, and all train. Judgements that the
    full-width vectors agree with no better than with those of other queries are not trained on.

    Args:
        table: Corpus and queries.
        train: Judgements to train on.
        dev: Judgements to choose by; None to hold some of ``train`` out.
        share: How many of the training queries are held out.
        seed: Of the draw.
        folds: Parts for cross-validation; 0 to hold out once.
    """
    if len(train.pairs) == 0:
        return Labels(train, dev)
    own, others = full_width_scores(table, train, seed)
    if not _agree(own, others):
        note = "the vectors rank the judged documents no better than those of other queries: fitted without labels"
        return Labels(None, dev, note)
    quality = float(own.mean())
    if dev is not None or share == 0:
        return Labels(train, dev, quality=quality)
    judged = len(train.query_rows)
    if judged < 2 * MIN_HELD_OUT:
        note = (
            f"fewer than {2 * MIN_HELD_OUT} judged queries: they choose how far to go, and nothing is trained on them"
        )
        return Labels(None, train, note)
    if folds and judged * share < ENOUGH:
        return Labels(train, None, folds=train.folds(folds, seed), quality=quality)
    return Labels(*train.hold_out(share, seed), quality=quality)


def vectors_agree(table: VectorTable, qrels: Qrels, seed: int = 0) -> bool:
    """Whether full-width search finds the judged documents better than it finds those of other queries.

    Better by more than :data:`SURE` standard errors of the paired difference of :func:`full_width_scores`.
    """
    return _agree(*full_width_scores(table, qrels, seed))


def _agree(own: np.ndarray, others: np.ndarray) -> bool:
    gain = own - others
    return len(gain) < 2 or bool(gain.mean() > SURE * gain.std(ddof=1) / math.sqrt(len(gain)))


def full_width_scores(table: VectorTable, qrels: Qrels, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """nDCG@10 of full-width search, for up to :data:`SAMPLE` queries.

    Returns:
        By their own judgements and by those of the next query, ``(q,)`` each.
    """
    import torch

    from smec_st.metrics import exact_search, leave_out

    rng = np.random.default_rng(seed)
    rows = rng.permutation(qrels.query_rows)[:SAMPLE]
    judged = qrels.of_queries(rows)
    documents = np.arange(table.corpus_size)
    if table.corpus_size > MOST_DOCUMENTS:
        drawn = rng.choice(table.corpus_size, MOST_DOCUMENTS, replace=False)
        documents = np.union1d(drawn, judged.documents)
    ids = torch.from_numpy(table.query_ids(rows))
    ranked, _ = exact_search(table[torch.from_numpy(documents)].numpy(), table[ids].numpy(), min(11, len(documents)))
    ranked = leave_out(documents[ranked], table.own(ids).numpy())[:, :10]
    after = dict(zip(rows.tolist(), np.roll(rows, 1).tolist(), strict=True))
    others = Qrels(np.array([after[row] for row in judged.queries.tolist()]), judged.documents, judged.grades)
    return _scores(ranked, rows, judged), _scores(ranked, rows, others)


def _scores(ranked: np.ndarray, rows: np.ndarray, qrels: Qrels) -> np.ndarray:
    from smec_st.metrics import score_rankings

    return score_rankings((rows, ranked), qrels, ("ndcg@10",))["ndcg@10"]
