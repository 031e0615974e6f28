"""LangChain: embeddings that come out compressed, and a retriever over a :class:`~smec_st.FunnelIndex`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError
from smec_st.integrations.sized import SizedCompressor
from smec_st.search import FunnelIndex

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.stores import BaseStore
    from pydantic import ConfigDict
except ImportError as error:
    raise ImportError('this module needs LangChain: pip install "smec-st[langchain]".') from error


class CompressedEmbeddings(Embeddings):
    """Embeds documents and queries with another LangChain embedder, and compresses the vectors.

    Args:
        embeddings: The embedder whose vectors the compressor was fitted on.
        compressor: A compressor, or the folder or id on the Hub to load it from.
        dim: Numbers per vector; the widest size by default.
        fingerprint: Fingerprint of the vectors that a store holds already, to check that they were made alike.

    Raises:
        DataError: If the compressor has no such size, another fingerprint, or is for another model.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        compressor: Compressor | str | Path,
        dim: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.embeddings = embeddings
        self._sized = SizedCompressor(compressor, dim, fingerprint, embeddings)
        self.dim = self._sized.dim
        self.fingerprint = self._sized.fingerprint

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents; ``dim`` numbers each, of length 1."""
        return self._sized.lists(self.embeddings.embed_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query; ``dim`` numbers of length 1."""
        return self._sized.one(self.embeddings.embed_query(text))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents as :meth:`embed_documents` does."""
        return self._sized.lists(await self.embeddings.aembed_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query as :meth:`embed_query` does."""
        return self._sized.one(await self.embeddings.aembed_query(text))


class FunnelRetriever(BaseRetriever):
    """Finds documents with a :class:`~smec_st.FunnelIndex`, and reads them from a LangChain store.

    Attributes:
        index: The index; its ids, as text, are the keys of ``documents``.
        embeddings: Embeds queries: the embedder at full width, or :class:`CompressedEmbeddings`.
        documents: Store of the documents, such as ``InMemoryStore``.
        k: Number of documents per query.
        where: Filter, see :meth:`FunnelIndex.search`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    index: FunnelIndex
    embeddings: Embeddings
    documents: BaseStore[str, Document]
    k: int = 4
    where: dict[str, Any] | None = None

    def model_post_init(self, context: object) -> None:
        """Check that the embedder is the one that the index was made with."""
        SizedCompressor(self.index.compressor, None, getattr(self.embeddings, "fingerprint", None), self.embeddings)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        vector = np.asarray([self.embeddings.embed_query(query)], dtype=np.float32)
        hits = self.index.search(vector, self.k, where=self.where)
        keys = [str(key) for key, score in zip(hits.ids[0], hits.scores[0], strict=True) if np.isfinite(score)]
        found = dict(zip(keys, self.documents.mget(keys), strict=True))
        missing = [key for key, document in found.items() if document is None]
        if missing:
            raise DataError(f"the index has documents that the store lacks: {', '.join(missing)}.")
        return [document for document in found.values() if document is not None]
