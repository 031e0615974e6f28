"""Run MTEB at every size, encoding each text once. Needs the extra ``mteb``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data import as_numpy, unit_rows
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from mteb import AbsTask
    from mteb.models import ModelMeta
    from mteb.results import ModelResult
    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from torch.utils.data import DataLoader

    from smec_st.data.vectors import ArrayLike


class SizedEncoder:
    """An MTEB encoder that caches vectors of full width and returns their first ``dim`` dimensions.

    A task encodes the same inputs at every size, so all sizes but the first are served from the cache.

    Args:
        model: The model. Its prefixes should be embeddings; the prefixes of other models serve as a baseline.
        **kwargs: Arguments of mteb's ``SentenceTransformerEncoderWrapper``, for instance ``model_prompts``.
    """

    def __init__(self, model: SentenceTransformer, **kwargs: Any) -> None:
        self.dim: int | None = None
        self.encoded = 0
        models = load_optional("mteb.models", "running MTEB")
        self._inner = models.SentenceTransformerEncoderWrapper(model, **kwargs)
        self._cache: dict[str, np.ndarray] = {}

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The metadata of the model, with the current size."""
        found: ModelMeta = self._inner.mteb_model_meta.model_copy(update={"embed_dim": self.dim} if self.dim else {})
        return found

    def encode(self, inputs: DataLoader[dict[str, Any]], **kwargs: Any) -> np.ndarray:
        """Return vectors ``(n, dim)``, float32 of unit norm; arguments as in ``mteb.models.EncoderProtocol``."""
        task, side = kwargs["task_metadata"], kwargs.get("prompt_type")
        digest = hashlib.sha256(f"{task.name}\0{side}\0".encode())
        for batch in inputs:
            for name in sorted(batch):
                for item in batch[name]:
                    _add(digest, name)
                    _add(digest, item)
        key = digest.hexdigest()
        if key not in self._cache:
            with self._inner.model.truncate_embeddings(None):
                self._cache[key] = as_numpy(self._inner.encode(inputs, **kwargs)).astype(np.float32)
            self.encoded += len(self._cache[key])
        return unit_rows(self._cache[key][:, : self.dim])

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Tensor:
        """Compute the model's similarity of all pairs."""
        found: Tensor = self._inner.similarity(embeddings1, embeddings2)
        return found

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> Tensor:
        """Compute the model's similarity of corresponding rows."""
        found: Tensor = self._inner.similarity_pairwise(embeddings1, embeddings2)
        return found


def evaluate_mteb(
    model: SentenceTransformer, tasks: Iterable[AbsTask], dims: Sequence[int], **kwargs: Any
) -> dict[int, ModelResult]:
    """Run MTEB tasks at every size, encoding each text once.

    Args:
        model: The model, for instance from :meth:`~smec_st.Compressor.attach`.
        tasks: Tasks, as from ``mteb.get_tasks``.
        dims: Sizes.
        **kwargs: Arguments of ``mteb.evaluate``. Results are not cached on disk unless ``cache`` is given. A cache
            stores all sizes of a model under one name, so give each model its own.

    Returns:
        ``mteb.results.ModelResult`` by size, sizes descending.

    Raises:
        ValueError: If a size is not between 1 and the model's width.
    """
    mteb = load_optional("mteb", "running MTEB")

    with model.truncate_embeddings(None):
        width = model.get_embedding_dimension()
    if not dims or width is None or max(dims) > width or min(dims) < 1:
        raise ValueError(f"`dims` must be in [1, {width}], the model's width; got {','.join(map(str, dims))}.")
    encoder = SizedEncoder(model)
    kwargs = {"cache": None, "show_progress_bar": False, **kwargs}
    results: dict[int, list[ModelResult]] = {dim: [] for dim in sorted(set(dims), reverse=True)}
    for task in tasks:
        for dim in results:
            encoder.dim = dim
            results[dim].append(mteb.evaluate(encoder, task, **kwargs))
        encoder.forget()
    return {dim: _joined(of_tasks) for dim, of_tasks in results.items()}


def _joined(results: Sequence[ModelResult]) -> ModelResult:
    """Join results of one task each into one result."""
    first, *others = results
    tasks = [task for result in (first, *others) for task in result.task_results]
    joined: ModelResult = first.model_copy(update={"task_results": tasks})
    return joined


def _add(digest: hashlib._Hash, item: object) -> None:
    """Add an input (text, image, array, conversation) to a hash, with its length so that inputs cannot be confused."""
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
