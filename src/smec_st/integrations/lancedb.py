"""LanceDB: an embedding function whose vectors come out compressed. Importing this module registers it."""

from __future__ import annotations

from typing import Any

import numpy as np

from smec_st.integrations.sized import SizedCompressor

try:
    from lancedb.embeddings import EmbeddingFunction, get_registry, register
    from lancedb.embeddings.utils import TEXT
    from pydantic import PrivateAttr
except ImportError as error:
    raise ImportError('this module needs LanceDB: pip install "smec-st[lancedb]".') from error


@register("smec-st")
class CompressedEmbeddings(EmbeddingFunction):
    """Embeds texts with another embedding function of LanceDB, and compresses the vectors.

    ``get_registry().get("smec-st").create(embedder="openai", options={"name": "text-embedding-3-small"},
    compressor="my-compressor", dim=48)``. A table stores these arguments and the fingerprint. Opened again, it embeds
    as before, or refuses if the compressor was replaced.

    Attributes:
        embedder: Name in LanceDB's registry of the function whose vectors the compressor was fitted on.
        options: Arguments of that function.
        compressor: Folder or id on the Hub of the compressor.
        dim: Numbers per vector; the widest size by default.
        fingerprint: Fingerprint of the vectors that a table holds already.

    Raises:
        DataError: If the compressor has no such size, another fingerprint, or is for another model.
    """

    embedder: str
    options: dict[str, Any] = {}
    compressor: str
    dim: int | None = None
    fingerprint: str | None = None
    _inner: EmbeddingFunction = PrivateAttr()
    _sized: SizedCompressor = PrivateAttr()

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._inner = get_registry().get(self.embedder).create(**self.options)
        self._sized = SizedCompressor(self.compressor, self.dim, self.fingerprint, self._inner, names=("name",))

    def ndims(self) -> int:
        """Return the numbers per vector."""
        return self._sized.dim

    def safe_model_dump(self) -> dict[str, Any]:
        """Return what a table stores: the arguments and the fingerprint."""
        return {**super().safe_model_dump(), "dim": self._sized.dim, "fingerprint": self._sized.fingerprint}

    def compute_query_embeddings(self, query: str) -> list[np.ndarray | None]:
        """Embed a query; ``dim`` numbers of length 1."""
        return self._compressed(self._inner.compute_query_embeddings(query))

    def compute_source_embeddings(self, texts: TEXT) -> list[np.ndarray | None]:
        """Embed texts; ``dim`` numbers each, of length 1, or None where the embedder gives None."""
        return self._compressed(self._inner.compute_source_embeddings(texts))

    def _compressed(self, vectors: list[np.ndarray | None]) -> list[np.ndarray | None]:
        given = [vector for vector in vectors if vector is not None]
        small = iter(self._sized(given))
        return [None if vector is None else next(small) for vector in vectors]
