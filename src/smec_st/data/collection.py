"""A test collection in memory: vectors, ids, and who is relevant to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smec_st.data.errors import DataError, some
from smec_st.data.own import as_own_document
from smec_st.data.qrels import Qrels

SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "validation": "dev",
    "test": "test",
}  # as others call them


@dataclass(frozen=True)
class Collection:
    """A test collection: vectors of corpus and queries, with judgements per split.

    Attributes:
        name: Folder name, or id on the Hub.
        corpus: ``(N, D)`` vectors, rows as in ``corpus_ids``.
        queries: ``(Q, D)`` vectors, rows as in ``query_ids``.
        corpus_ids: Document ids.
        query_ids: Query ids.
        qrels: Judgements by split name; a split that the source lacks is absent. They never name a query's own
            document, as it cannot be found.
        own_document: Corpus row that is the query itself, which no search may return, -1 for none, ``(Q,)`` int64;
            all -1 when left out.
        backbone: What the files of vectors say of the model that made them; empty when they say nothing.
        titles: Of the documents, in the order of ``corpus_ids``; empty when texts were not asked for.
        texts: Of the documents, without their titles.
    """

    name: str
    corpus: np.ndarray
    queries: np.ndarray
    corpus_ids: list[str]
    query_ids: list[str]
    qrels: dict[str, Qrels] = field(default_factory=dict)
    own_document: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    backbone: Mapping[str, Any] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = self.own_document if len(self.own_document) else None
        own = as_own_document(given, len(self.queries), len(self.corpus))
        object.__setattr__(self, "own_document", own)
        if (own >= 0).any():
            findable = {split: qrels.without_own(own) for split, qrels in self.qrels.items()}
            object.__setattr__(self, "qrels", findable)

    def judged(self, split: str) -> Qrels:
        """Judgements of a split that must exist and hold a relevant pair."""
        if split not in self.qrels:
            raise DataError(f"{self.name} has no {split} split; it has {some(sorted(self.qrels)) or 'none'}.")
        if len(self.qrels[split].pairs) == 0:
            raise DataError(f"the {split} split of {self.name} holds no relevant pair.")
        return self.qrels[split]
