"""LlamaIndex: an embedding model whose vectors come out compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smec_st.compressor import Compressor
from smec_st.integrations.sized import SizedCompressor

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from pydantic import PrivateAttr, SerializeAsAny
except ImportError as error:
    raise ImportError('this module needs LlamaIndex: pip install "smec-st[llama-index]".') from error


class CompressedEmbedding(BaseEmbedding):
    """Embeds texts and queries with another LlamaIndex embedding model, and compresses the vectors.

    The fingerprint and the size are fields, so that caches keyed by the model's settings keep sizes apart.

    Args:
        embedder: The embedding model whose vectors the compressor was fitted on.
        compressor: A compressor, or the folder or id on the Hub to load it from.
        dim: Numbers per vector; the widest size by default.
        fingerprint: Fingerprint of the vectors that a store holds already, to check that they were made alike.
        **settings: Other fields of ``BaseEmbedding``.

    Raises:
        DataError: If the compressor has no such size, another fingerprint, or is for another model.
    """

    embedder: SerializeAsAny[BaseEmbedding]
    dim: int
    fingerprint: str
    _sized: SizedCompressor = PrivateAttr()

    def __init__(
        self,
        embedder: BaseEmbedding,
        compressor: Compressor | str | Path,
        dim: int | None = None,
        fingerprint: str | None = None,
        **settings: Any,
    ) -> None:
        sized = SizedCompressor(compressor, dim, fingerprint, embedder)
        given = {"model_name": embedder.model_name, "embed_batch_size": embedder.embed_batch_size, **settings}
        super().__init__(embedder=embedder, dim=sized.dim, fingerprint=sized.fingerprint, **given)
        self._sized = sized

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows this class."""
        return "CompressedEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._sized.one(self.embedder.get_query_embedding(query))

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._sized.one(self.embedder.get_text_embedding(text))

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._sized.lists(self.embedder.get_text_embedding_batch(texts))

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return self._sized.one(await self.embedder.aget_query_embedding(query))

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return self._sized.one(await self.embedder.aget_text_embedding(text))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._sized.lists(await self.embedder.aget_text_embedding_batch(texts))
