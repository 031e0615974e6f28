"""Batches: row ids to vectors, or to what a backbone takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor

from smec_st.data import EncodedTable, Table


@dataclass
class VectorCollator(SentenceTransformerDataCollator):
    """Gather a batch's vectors by row id: columns ``anchor`` and, with labels, ``document`` of the dataset.

    Args:
        table: Vectors by row id.
        live: Whether a backbone trains: then what it takes comes in place of vectors.
    """

    table: Table | None = None
    live: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return ``anchor_sentence_embedding`` ``(B, D)``, the same for ``document``, and ``label`` ``(B, 2)``."""
        anchors = torch.tensor([row["anchor"] for row in features])
        batch = self._column("anchor", anchors, "query")
        documents = torch.full_like(anchors, -1)
        if "document" in features[0]:
            documents = torch.tensor([row["document"] for row in features])
            batch.update(self._column("document", documents, "document"))
        batch["label"] = torch.stack([anchors, documents], dim=1)
        return batch

    def _column(self, name: str, rows: Tensor, side: str) -> dict[str, Any]:
        assert self.table is not None
        if not self.live:
            return {f"{name}_sentence_embedding": self.table[rows]}
        assert isinstance(self.table, EncodedTable)
        return {f"{name}_{key}": value for key, value in self.table.inputs(rows, side).items()}
