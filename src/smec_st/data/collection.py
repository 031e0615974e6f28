"""A test collection: vectors, ids, and which documents are relevant to which queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smec_st.data.own import as_own_document
from smec_st.data.qrels import Qrels
from smec_st.system.errors import DataError, some

SPLITS = ("train", "dev", "test")
SPLIT_NAMES = {"train": "train", "dev": "dev", "val": "dev", "validation": "dev", "test": "test"}  # names in sources


@dataclass(frozen=True)
class Collection:
    """A test collection: vectors of the corpus and the queries, with judgements per split.

    Attributes:
        name: Folder name, or id on the Hub.
        corpus: Document vectors, ``(N, D)``, in the order of ``corpus_ids``.
        queries: Query vectors, ``(Q, D)``, in the order of ``query_ids``.
        corpus_ids: Document ids.
        query_ids: Query ids.
        qrels: Judgements by split; a split that the source lacks is absent. Judgements of a query on its own document
            are removed, because searches leave that document out.
        own_document: Row of the document that is the same item as the query, -1 for none, ``(Q,)`` int64. Searches
            leave it out. By default no query has one.
        backbone: What the vector files say about the model that made them; empty if they say nothing.
        titles: Document titles in the order of ``corpus_ids``; empty unless a model embedded the texts.
        texts: Document texts without their titles, likewise.
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

    @property
    def similarity(self) -> str:
        """How the model that made the vectors scores, in sentence-transformers' words: "cosine" if it does not say."""
        return str(self.backbone.get("similarity") or "cosine")

    def judged(self, split: str) -> Qrels:
        """Return the judgements of a split.

        Raises:
            DataError: If the split does not exist or has no relevant pair.
        """
        if split not in self.qrels:
            raise DataError(f"{self.name} has no {split} split; it has {some(sorted(self.qrels)) or 'none'}.")
        if len(self.qrels[split].pairs) == 0:
            raise DataError(f"the {split} split of {self.name} holds no relevant pair.")
        return self.qrels[split]
