"""MTEB at every size, with each text encoded once. Needs the extra ``mteb``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import as_numpy, unit_rows
from smec_st.evaluation.report import Row

if TYPE_CHECKING:
    from mteb import AbsTask
    from sentence_transformers import SentenceTransformer


class SizedEncoder:
    """An MTEB encoder that remembers full vectors and serves one size of them.

    What a task encodes at one size, it encodes again at the next: the second time costs a look-up.

    Args:
        model: A nested model: its first ``m`` numbers are the ``m``-dimensional vector. Any model at all will do as a
            rival, cut as it is.
        **kwargs: Of mteb's ``SentenceTransformerEncoderWrapper``, for instance ``model_prompts``.
    """

    def __init__(self, model: SentenceTransformer, **kwargs: Any) -> None:
        from mteb.models import SentenceTransformerEncoderWrapper

        self.dim: int | None = None
        self.encoded = 0
        self._inner = SentenceTransformerEncoderWrapper(model, **kwargs)
        self._known: dict[str, np.ndarray] = {}

    @property
    def mteb_model_meta(self) -> Any:
        """Of the model, with the size being served."""
        return self._inner.mteb_model_meta.model_copy(update={"embed_dim": self.dim} if self.dim else {})

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray:
        """``(n, dim)`` float32, unit norm; arguments as in ``mteb.models.EncoderProtocol``."""
        task, side = kwargs["task_metadata"], kwargs.get("prompt_type")
        digest = hashlib.sha256(f"{task.name}\0{side}\0".encode())
        for batch in inputs:
            for name in sorted(batch):
                for item in batch[name]:
                    _add(digest, name)
                    _add(digest, item)
        key = digest.hexdigest()
        if key not in self._known:
            with self._inner.model.truncate_embeddings(None):
                self._known[key] = as_numpy(self._inner.encode(inputs, **kwargs)).astype(np.float32)
            self.encoded += len(self._known[key])
        return unit_rows(self._known[key][:, : self.dim])

    def forget(self) -> None:
        """Drop the vectors of finished tasks."""
        self._known.clear()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity."""
        return self._inner.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The model's own similarity, pair by pair."""
        return self._inner.similarity_pairwise(embeddings1, embeddings2)


def evaluate_mteb(
    model: SentenceTransformer, tasks: Iterable[AbsTask], dims: Sequence[int], **kwargs: Any
) -> dict[int, Any]:
    """Run MTEB tasks at every size with one encode of each text.

    Args:
        model: The model, for instance of :meth:`~smec_st.Compressor.attach`.
        tasks: As from ``mteb.get_tasks``.
        dims: Sizes.
        **kwargs: Of ``mteb.evaluate``. Results are not cached on disk unless ``cache`` is given, and then under one
            name for all sizes: give each model its own.

    Returns:
        ``mteb.results.ModelResult`` by size, sizes falling.
    """
    import mteb

    with model.truncate_embeddings(None):
        width = model.get_embedding_dimension()
    if not dims or width is None or max(dims) > width or min(dims) < 1:
        raise ValueError(f"`dims` must be in [1, {width}], the model's width; got {','.join(map(str, dims))}.")
    encoder = SizedEncoder(model)
    kwargs = {"cache": None, "show_progress_bar": False, **kwargs}
    found: dict[int, list[Any]] = {dim: [] for dim in sorted(set(dims), reverse=True)}
    for task in tasks:
        for dim in found:
            encoder.dim = dim
            found[dim].append(mteb.evaluate(encoder, task, **kwargs))
        encoder.forget()
    return {dim: _joined(results) for dim, results in found.items()}


def mteb_rows(results: dict[int, Any], method: str = "model") -> list[Row]:
    """Main scores by task as rows of a report; the collection is the task's name."""
    return [
        Row(
            method=method,
            dim=dim,
            bytes_per_vector=4 * dim,
            metrics={"main_score": float(task.get_score())},
            collection=task.task_name,
        )
        for dim, result in results.items()
        for task in result.task_results
    ]


def _joined(results: Sequence[Any]) -> Any:
    """One result of several, each of one task."""
    first, *others = results
    tasks = [task for result in (first, *others) for task in result.task_results]
    return first.model_copy(update={"task_results": tasks})


def _add(digest: Any, item: Any) -> None:
    """Feed any input (text, image, array, conversation) to a hash, with its length: none runs into the next."""
    if isinstance(item, dict):
        parts = [part for pair in sorted(item.items()) for part in pair]
    elif isinstance(item, list | tuple):
        parts = list(item)
    else:
        raw = item.tobytes() if hasattr(item, "tobytes") else str(item).encode()
        digest.update(f"{type(item).__name__} {getattr(item, 'size', '')} {len(raw)}\0".encode() + raw)
        return
    digest.update(f"{type(item).__name__} {len(parts)}\0".encode())
    for part in parts:
        _add(digest, part)
