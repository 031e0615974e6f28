"""Chroma: an embedding function whose vectors come out compressed. Importing this module registers it with Chroma."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smec_st.compressor import Compressor
from smec_st.data import DataError
from smec_st.integrations.sized import SizedCompressor

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
    from chromadb.utils.embedding_functions import config_to_embedding_function, register_embedding_function
except ImportError as error:
    raise ImportError('this module needs Chroma: pip install "smec-st[chroma]".') from error


@register_embedding_function
class CompressedEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents and queries with another embedding function of Chroma, and compresses the vectors.

    A collection stores how it was embedded, fingerprint included. ``client.get_collection(name)`` without an embedding
    function therefore builds the same one again, or refuses if the compressor was replaced.

    Args:
        embedder: The embedding function whose vectors the compressor was fitted on.
        compressor: The folder or id on the Hub of a compressor, or a compressor; a collection can only store a name.
        dim: Numbers per vector; the widest size by default.
        fingerprint: Fingerprint of the vectors that a collection holds already, to check that they were made alike.

    Raises:
        DataError: If the compressor has no such size, another fingerprint, or is for another model.
    """

    def __init__(
        self,
        embedder: EmbeddingFunction[Documents],
        compressor: Compressor | str | Path,
        dim: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.embedder = embedder
        self._sized = SizedCompressor(compressor, dim, fingerprint, embedder)

    def __call__(self, input: Documents) -> Embeddings:
        """Embed documents; ``dim`` numbers each, of length 1."""
        return list(self._sized(self.embedder(input)))

    def embed_query(self, input: Documents) -> Embeddings:
        """Embed queries; ``dim`` numbers each, of length 1."""
        return list(self._sized(self.embedder.embed_query(input)))

    @staticmethod
    def name() -> str:
        """Return the name under which Chroma knows this class."""
        return "smec_st"

    def default_space(self) -> Space:
        """Compare by cosine unless a collection says otherwise."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Describe the embedding function for a collection.

        Raises:
            DataError: If the compressor was given as an object, which has no name.
        """
        return {
            "embedder": {"name": self.embedder.name(), "config": self.embedder.get_config()},
            "compressor": self._sized.saved_source(),
            "dim": self._sized.dim,
            "fingerprint": self._sized.fingerprint,
        }

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> CompressedEmbeddingFunction:
        """Build the function that :meth:`get_config` described."""
        embedder = config_to_embedding_function(config["embedder"])
        return CompressedEmbeddingFunction(embedder, config["compressor"], config["dim"], config["fingerprint"])

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse to give a collection another compressor, size or embedder."""
        for key in ("fingerprint", "dim", "embedder"):
            if old_config[key] != new_config[key]:
                raise DataError(f"the collection's {key} is {old_config[key]}; it cannot become {new_config[key]}.")
