"""A table of texts or images that a backbone encodes when their vectors are first needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.own import as_own_document
from smec_st.data.table import Table
from smec_st.data.vectors import as_numpy, unit_rows
from smec_st.system.errors import DataError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from smec_st.data.vectors import ArrayLike

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # encode_document uses the first of these that a model has


class EncodedTable(Table):
    """A :class:`~smec_st.data.Table` of texts or images, each encoded when it is first read and then cached.

    Queries go through ``encode_query`` and documents through ``encode_document``, so that prompts, ``Router`` routes
    and modalities are the same as in serving.

    Args:
        backbone: The model. Call :meth:`forget` after its weights change.
        corpus: Documents: texts, images, or whatever else the model takes.
        queries: Queries, or None.
        own_document: As for :class:`~smec_st.data.VectorTable`.
        batch_size: Number of items encoded at a time.
    """

    def __init__(
        self,
        backbone: SentenceTransformer,
        corpus: Sequence[object],
        queries: Sequence[object] | None = None,
        own_document: ArrayLike | None = None,
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

    def __getitem__(self, rows: Tensor) -> Tensor:
        """See :class:`~smec_st.data.Table`."""
        import torch

        ids = rows.cpu().numpy()
        missing = np.unique(ids[~self.is_encoded[ids]])
        documents, queries = missing[missing < self.corpus_size], missing[missing >= self.corpus_size]
        for part, encode in ((documents, self.backbone.encode_document), (queries, self.backbone.encode_query)):
            if len(part):
                # A truncation that the model was loaded with is for serving; training needs the full width.
                with self.backbone.truncate_embeddings(None):
                    vectors = encode(self.items(part), batch_size=self.batch_size, show_progress_bar=False)
                self._vectors[part] = self._checked(as_numpy(vectors), part)
                self.is_encoded[part] = True
        return torch.from_numpy(self._vectors[ids])

    def forget(self) -> None:
        """Drop the cached vectors, because the backbone has changed."""
        self.is_encoded[:] = False

    def own(self, rows: Tensor) -> Tensor:
        """See :class:`~smec_st.data.Table`."""
        return self._own[rows]

    def inputs(self, rows: Tensor, side: str) -> dict[str, Any]:
        """Return the inputs of the backbone's ``forward`` for rows of one side, "query" or "document"."""
        prompts = self.backbone.prompts or {}
        names = ("query",) if side == "query" else DOCUMENT_PROMPTS
        prompt = next((prompts[name] for name in names if name in prompts), None)
        features = self.backbone.preprocess(self.items(rows.numpy()), prompt=prompt, task=side)
        return {**features, "task": side}

    def items(self, ids: np.ndarray) -> list[object]:
        """Return the texts or images of these rows."""
        corpus, queries = self._items
        return [corpus[i] if i < self.corpus_size else queries[i - self.corpus_size] for i in ids.tolist()]

    def _checked(self, vectors: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return unit rows; raise :class:`DataError` for an item whose vector has no direction."""
        good = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        if not good.all():
            row = int(ids[np.flatnonzero(~good)[0]])
            side, row = ("query", row - self.corpus_size) if row >= self.corpus_size else ("document", row)
            raise DataError(f"the backbone gives {side} {row} a vector of zeros, NaN or infinity.")
        return unit_rows(vectors)
