"""Haystack: components that embed texts and documents with another component, and compress the vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from smec_st.compressor import Compressor
from smec_st.integrations.sized import SizedCompressor

try:
    from haystack import Document, component, default_to_dict
    from haystack.components.embedders.types import DocumentEmbedder, TextEmbedder
    from haystack.core.serialization import component_to_dict
except ImportError as error:
    raise ImportError('this module needs Haystack: pip install "smec-st[haystack]".') from error


class _Wrapper:
    """Loads the compressor, warms up the wrapped embedder, and saves both by name."""

    def __init__(
        self,
        embedder: TextEmbedder | DocumentEmbedder,
        compressor: Compressor | str | Path,
        dim: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.embedder = embedder
        self._sized = SizedCompressor(compressor, dim, fingerprint, embedder)
        self.dim = self._sized.dim
        self.fingerprint = self._sized.fingerprint

    def warm_up(self) -> None:
        """Warm up the wrapped embedder."""
        if hasattr(self.embedder, "warm_up"):
            self.embedder.warm_up()

    def to_dict(self) -> dict[str, Any]:
        """Describe the component for a pipeline's file, fingerprint included: another compressor is refused there.

        Raises:
            DataError: If the compressor was given as an object, which has no name.
        """
        embedder = component_to_dict(self.embedder, "embedder")
        source = self._sized.saved_source()
        described: dict[str, Any] = default_to_dict(
            self, embedder=embedder, compressor=source, dim=self.dim, fingerprint=self.fingerprint
        )
        return described


@component
class CompressedTextEmbedder(_Wrapper):
    """Embeds a text, such as a query, and compresses the vector.

    Args:
        embedder: A text embedder whose vectors the compressor was fitted on.
        compressor: The folder or id on the Hub of a compressor, or a compressor.
        dim: Numbers per vector; the widest size by default.
        fingerprint: Fingerprint of the vectors that a store holds already, to check that they were made alike.

    Raises:
        DataError: If the compressor has no such size, another fingerprint, or is for another model.
    """

    @component.output_types(embedding=list[float], meta=dict[str, Any])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, Any]:
        """Embed a text; ``embedding`` has ``dim`` numbers of length 1."""
        result = self.embedder.run(text=text)
        return {"meta": {}, **result, "embedding": self._sized.one(result["embedding"])}


@component
class CompressedDocumentEmbedder(_Wrapper):
    """Embeds documents and compresses their vectors; otherwise as :class:`CompressedTextEmbedder`."""

    @component.output_types(documents=list[Document], meta=dict[str, Any])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents; those that the embedder gave no vector to come back without one."""
        result = self.embedder.run(documents=documents)
        embedded = [document for document in result["documents"] if document.embedding is not None]
        vectors = dict(zip((d.id for d in embedded), self._sized.lists([d.embedding for d in embedded]), strict=True))
        small = [replace(document, embedding=vectors.get(document.id)) for document in result["documents"]]
        return {"meta": {}, **result, "documents": small}
