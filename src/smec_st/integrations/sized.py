"""What all wrappers share: a compressor at one size, checked against an embedder and against stored vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError
from smec_st.data.space import check_backbone

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MODEL_NAMES = ("model_name", "model")  # attributes in which embedders keep the name of their model


class SizedCompressor:
    """Compresses the vectors of one embedder to one size.

    Args:
        compressor: A compressor, or the folder or id on the Hub to load it from.
        dim: Numbers per vector; the widest size by default.
        fingerprint: Fingerprint of the vectors that are stored already; None if there are none yet.
        embedder: The embedder that is wrapped. Where it says which model it uses, this must be the compressor's.
        names: Attributes in which it may say so.

    Raises:
        DataError: If there is no such compressor or size, it has another fingerprint, or it is for another model.
    """

    def __init__(
        self,
        compressor: Compressor | str | Path,
        dim: int | None,
        fingerprint: str | None,
        embedder: object,
        names: Sequence[str] = MODEL_NAMES,
    ) -> None:
        self.source = None if isinstance(compressor, Compressor) else str(compressor)
        self.compressor = compressor if isinstance(compressor, Compressor) else Compressor.from_pretrained(compressor)
        self.fingerprint = self.compressor.fingerprint
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise DataError(
                f"the stored vectors were made with the compressor {fingerprint}, this one is {self.fingerprint}: "
                "they cannot be mixed. Use the former, or embed the documents again."
            )
        backbone = self.compressor.info.get("backbone") or {}
        check_backbone(backbone, {"model": _model_name(embedder, names)}, type(embedder).__name__)
        self.dim = self.compressor.map_for(dim).out_dim

    def __call__(self, vectors: ArrayLike) -> np.ndarray:
        """Compress vectors, ``(n, D) -> (n, dim)`` float32 of length 1; ``n`` may be 0.

        Raises:
            DataError: If they are not of the compressor's width, or one has no direction.
        """
        rows = np.asarray(vectors, dtype=np.float32)
        if rows.size == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        return self.compressor.transform(rows, self.dim)

    def lists(self, vectors: ArrayLike) -> list[list[float]]:
        """Compress vectors as :meth:`__call__` does, and return lists of floats."""
        rows: list[list[float]] = self(vectors).tolist()
        return rows

    def one(self, vector: Sequence[float]) -> list[float]:
        """Compress one vector, ``(D,) -> (dim,)``."""
        return self.lists([vector])[0]

    def saved_source(self) -> str:
        """Return the folder or id that a wrapper's own configuration can name.

        Raises:
            DataError: If the compressor was given as an object, which has no name.
        """
        if self.source is None:
            raise DataError("only a compressor that was given as a folder or id on the Hub can be saved by name.")
        return self.source


def _model_name(embedder: object, names: Sequence[str]) -> str | None:
    """Return the name of the model that an embedder uses; None if it does not say."""
    for attribute in names:
        name = getattr(embedder, attribute, None)
        if isinstance(name, str) and name not in ("", "unknown"):
            return name
    return None
