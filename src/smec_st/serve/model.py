"""The model that is served: texts to the backbone's vectors, and these to any size or code of the compressor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError, as_numpy, unit_rows
from smec_st.data.embedding import load_model
from smec_st.hub.load import INSIDE, local_folder
from smec_st.hub.verify import HALF_TOLERANCE, TEXTS, sizes_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SIDES = ("query", "document")
# Larger batches gain nothing on a CPU, but pad more and keep all waiting for the slowest text.
CPU_BATCH, BATCH = 4, 32


@dataclass(frozen=True)
class Form:
    """The form in which a client wants vectors.

    Attributes:
        make: Turns the backbone's vectors into it, ``(n, D) -> (n, w)``: float32 vectors of length 1, or codes.
        precision: float32, float16, int8, binary or pq.
        dim: Numbers of a vector, once decoded.
    """

    make: Callable[[np.ndarray], np.ndarray]
    precision: str
    dim: int


class ServedModel:
    """A sentence-transformers model, with the compressor that it was exported with, if there is one.

    Args:
        model: Folder, or id on the Hub.
        name: What clients call it; by default the id, or the folder's name.

    Raises:
        DataError: If there is no such model, it does not read text, or the compressor inside is another one.
    """

    def __init__(self, model: str | Path, name: str | None = None) -> None:
        folder = local_folder(model)
        self.name = name or (folder.resolve().name if Path(model).is_dir() else str(model))
        loaded = load_model(str(folder))
        if not loaded.supports("text"):
            raise DataError(f"{model} does not read text.")
        self.width = int(loaded.get_embedding_dimension() or 0)
        self.sizes = sizes_of(folder, self.width)
        self.compressor = Compressor.load(folder / INSIDE) if (folder / INSIDE).is_dir() else None
        self._model = loaded if self.compressor is None else _backbone(loaded, self.compressor, str(model))

    @property
    def fingerprint(self) -> str | None:
        """The compressor's fingerprint; None without a compressor."""
        return None if self.compressor is None else self.compressor.fingerprint

    @property
    def batch(self) -> int:
        """Number of texts to embed at a time on the model's device."""
        return CPU_BATCH if self._model.device.type == "cpu" else BATCH

    @property
    def codes(self) -> list[dict[str, str | int]]:
        """The codes that can be asked for: ``precision``, ``dimensions`` and ``bytes`` of each."""
        heads = () if self.compressor is None else self.compressor.heads
        return [{"precision": head.precision, "dimensions": head.dim, "bytes": head.bytes} for head in heads]

    def embed(self, texts: Sequence[str], side: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Embed texts; must not run in two threads at once, because tokenizers must not.

        Args:
            texts: Any texts; what a model does not read of a long one is cut off.
            side: "query" or "document" to embed with the model's prompt for these, None for its default prompt.

        Returns:
            Vectors of the backbone, ``(n, D)`` float32, and the tokens of each text without prompts, ``(n,)``.
        """
        model = self._model
        encode = {"query": model.encode_query, "document": model.encode_document, None: model.encode}[side]
        vectors = encode(list(texts), batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False)
        return as_numpy(vectors), _token_counts(model.preprocess(list(texts)), len(texts))

    def form(
        self, dim: int | None = None, precision: str | None = None, bytes: int | None = None, side: str | None = None
    ) -> Form:
        """Find the form that a client asks for.

        Args:
            dim: Numbers per vector; the model's width by default.
            precision: "float32", or that of one of :attr:`codes`; "float32" by default.
            bytes: Bytes per code, instead of ``precision`` or to choose among several.
            side: For "query" there are no codes: the form is the float32 vector to compare with them.

        Raises:
            DataError: If the model has no such size or code.
        """
        if precision in (None, "float32") and bytes is None:
            dim = self.width if dim is None else dim
            if dim not in self.sizes:
                raise DataError(
                    f"this model has the sizes {', '.join(map(str, self.sizes))}; {dim} is not one of them."
                )
            if self.compressor is None:
                return Form(lambda vectors: unit_rows(vectors[:, :dim]), "float32", dim)
            return Form(self.compressor.head(dim).encode, "float32", dim)
        if self.compressor is None:
            raise DataError("this model has no codes, because there is no compressor in its folder.")
        head = self.compressor.head(dim, precision, bytes)
        if side == "query":
            return Form(head.queries, "float32", head.dim)
        return Form(head.encode, head.precision, head.dim)


def _token_counts(features: Mapping[str, Any], count: int) -> np.ndarray:
    if "attention_mask" in features:
        return np.asarray(features["attention_mask"].sum(dim=1).cpu(), dtype=np.int64)
    if "offsets" in features:  # static embeddings: the texts' tokens one after the other, and where each text starts
        return np.diff(features["offsets"].cpu().numpy(), append=features["input_ids"].numel())
    return np.zeros(count, dtype=np.int64)


def _backbone(model: SentenceTransformer, compressor: Compressor, name: str) -> SentenceTransformer:
    """Return an exported model without its compression, after checking that the compressor gives the same vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize

    width = int(model.get_embedding_dimension() or 0)
    problem = f"{name}: the model does not give the vectors of the compressor inside; export it again."
    try:
        layers = len(compressor.map_for(width).layers)
    except ValueError as error:
        raise DataError(problem) from error
    modules = list(model)
    kinds = [*[Dense] * layers, Normalize]
    if not all(isinstance(module, kind) for module, kind in zip(modules[-layers - 1 :], kinds, strict=True)):
        raise DataError(problem)
    backbone = SentenceTransformer(
        modules=modules[: -layers - 1],
        prompts=dict(model.prompts or {}),
        default_prompt_name=model.default_prompt_name,
        device=str(model.device),
    )
    expected = as_numpy(model.encode(list(TEXTS), show_progress_bar=False))
    got = compressor.transform(as_numpy(backbone.encode(list(TEXTS), show_progress_bar=False)), width)
    if not np.abs(got - unit_rows(expected)).max() <= HALF_TOLERANCE:  # NaN counts as different
        raise DataError(problem)
    return backbone
