"""Vectors of texts and images that a backbone gives, made when they are first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.errors import DataError
from smec_st.data.own import as_own_document
from smec_st.data.table import VectorTable
from smec_st.data.vectors import as_numpy, unit_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the first that a model has, as in encode_document


class EncodedTable(VectorTable):
    """A :class:`VectorTable` of items instead of vectors: each is encoded once, on the fly, and remembered.

    Queries go through ``encode_query`` and documents through ``encode_document``, so that prompts, ``Router`` routes
    and modalities are those of serving.

    Args:
        backbone: The model; :meth:`forget` what is remembered when it changes.
        corpus: Documents: texts, images, whatever the model takes.
        queries: Queries, or None.
        own_document: As for :class:`VectorTable`.
        batch_size: Items encoded at a time.
    """

    def __init__(
        self,
        backbone: SentenceTransformer,
        corpus: Sequence[Any],
        queries: Sequence[Any] | None = None,
        own_document: Any | None = None,
        batch_size: int = 32,
    ) -> None:
        import torch

        if len(corpus) == 0:
            raise DataError("there are no documents.")
        self.backbone, self.batch_size = backbone, batch_size
        self._items = corpus, (queries if queries is not None else [])
        self.width = int(backbone.get_embedding_dimension() or 0)
        self.corpus_size, self.query_size = (len(items) for items in self._items)
        own = as_own_document(own_document, self.query_size, self.corpus_size)
        self._own = torch.from_numpy(np.concatenate([np.arange(self.corpus_size), own]))
        self._vectors = np.zeros((len(self), self.width), dtype=np.float32)
        self.is_encoded = np.zeros(len(self), dtype=bool)

    def _read(self, rows: Tensor) -> Tensor:
        import torch

        ids = rows.cpu().numpy()
        missing = np.unique(ids[~self.is_encoded[ids]])
        documents, queries = missing[missing < self.corpus_size], missing[missing >= self.corpus_size]
        for part, encode in (
            (documents, self.backbone.encode_document),
            (queries, self.backbone.encode_query),
        ):
            if len(part):
                # Always float32, unit norm, and all the numbers: a serving size or type must not shrink training data.
                with self.backbone.truncate_embeddings(None):
                    vectors = encode(self.items(part), batch_size=self.batch_size, show_progress_bar=False)
                self._vectors[part] = self._checked(as_numpy(vectors), part)
                self.is_encoded[part] = True
        return torch.from_numpy(self._vectors[ids])

    def forget(self) -> None:
        """Encode everything anew: the backbone has changed."""
        self.is_encoded[:] = False

    def inputs(self, rows: Tensor, side: str) -> dict[str, Any]:
        """What the backbone's ``forward`` takes for these rows, all of one side: "query" or "document"."""
        prompts = self.backbone.prompts or {}
        names = ("query",) if side == "query" else DOCUMENT_PROMPTS
        prompt = next((prompts[name] for name in names if name in prompts), None)
        features = self.backbone.preprocess(self.items(rows.numpy()), prompt=prompt, task=side)
        return {**features, "task": side}

    def items(self, ids: np.ndarray) -> list[Any]:
        """The texts or images of these row ids."""
        corpus, queries = self._items
        return [corpus[i] if i < self.corpus_size else queries[i - self.corpus_size] for i in ids.tolist()]

    def _checked(self, vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Unit rows; an item whose vector has no direction is named."""
        good = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        if not good.all():
            row = int(ids[np.flatnonzero(~good)[0]])
            side, row = ("query", row - self.corpus_size) if row >= self.corpus_size else ("document", row)
            raise DataError(f"the backbone gives {side} {row} a vector of zeros, NaN or infinity.")
        return unit_rows(vectors)
