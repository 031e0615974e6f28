"""Embed texts or images with a sentence-transformers model and its own prompts, and cache the vectors on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.errors import DataError, one_line
from smec_st.data.safetensors import read_safetensors
from smec_st.data.vectors import as_numpy, unit_rows
from smec_st.system.optional import load_optional
from smec_st.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Items = Sequence[str] | Sequence[Path]  # texts, or paths of image files


def load_model(model: str) -> SentenceTransformer:
    """Load a sentence-transformers model by id or path.

    Raises:
        DataError: If it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    try:
        with quiet_libraries():
            return SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot load the model {model!r}: {one_line(error)}") from error


def backbone_record(model: SentenceTransformer) -> dict[str, Any]:
    """Describe a backbone: what a compressor saves about the model whose vectors it was fitted on."""
    card = model.model_card_data
    name = card.base_model or getattr(model[0], "model_name_or_path", None)
    auto = getattr(model[0], "auto_model", None)
    if name is None and auto is not None:
        name = auto.config.name_or_path
    return {
        "model": name and str(name),
        "revision": card.base_model_revision or getattr(getattr(auto, "config", None), "_commit_hash", None),
        "width": model.get_embedding_dimension(),
        "prompts": {name: prompt for name, prompt in (model.prompts or {}).items() if prompt},
        "similarity": model.similarity_fn_name,
    }


def embed(model: SentenceTransformer, texts: Sequence[str], side: str, progress: bool = False) -> np.ndarray:
    """Embed texts with ``encode_query`` if ``side`` is "query", else ``encode_document``; unit rows, ``(n, D)``.

    The rows are float32 also where the model itself gives int8 codes.
    """
    if not len(texts):
        return np.empty((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    encode = model.encode_query if side == "query" else model.encode_document
    # sentence-transformers cannot normalise whole numbers.
    vectors = encode(list(texts), convert_to_numpy=True, normalize_embeddings=False, show_progress_bar=progress)
    return unit_rows(as_numpy(vectors))


def embed_images(model: SentenceTransformer, paths: Sequence[Path], batch: int = 256) -> np.ndarray:
    """Embed image files, opening ``batch`` of them at a time; unit rows, ``(n, D)`` float32.

    Raises:
        DataError: If the model does not take images, or a file is not a readable image.
    """
    from tqdm.auto import tqdm

    if not model.supports("image"):
        raise DataError("this model does not take images; use an image model such as CLIP, or a file of vectors.")
    parts = []
    for start in tqdm(range(0, len(paths), batch), desc="images", leave=False):
        images = [_open_image(path) for path in paths[start : start + batch]]
        parts.append(unit_rows(as_numpy(model.encode(images, show_progress_bar=False))))
    return np.concatenate(parts)


def _open_image(path: Path) -> Any:
    pillow = load_optional("PIL.Image", "reading images")
    try:
        with pillow.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"{path} is not a readable image: {one_line(error)}") from error


def embed_tables(items: Mapping[str, Items], model_id: str) -> list[np.ndarray]:
    """Embed named lists of texts or image files, and cache the vectors by model and content.

    The cache folder is ``$SMEC_ST_CACHE``, or ``~/.cache/smec-st``.

    Args:
        items: Texts or image paths by name. Texts named "queries" are embedded as queries, others as documents.
        model_id: Id or path of a sentence-transformers model.

    Returns:
        One table per name, in the order given.
    """
    from safetensors.numpy import save_file

    model = load_model(model_id)
    content = [[_fingerprint(item) for item in part] for part in items.values()]
    key = hashlib.sha256(json.dumps([backbone_record(model), model_id, *content]).encode()).hexdigest()
    root = Path(os.environ.get("SMEC_ST_CACHE") or Path.home() / ".cache" / "smec-st")
    path = root / "vectors" / f"{key[:32]}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = {name: _embed_items(model, part, name) for name, part in items.items()}
        draft = path.with_suffix(f".{os.getpid()}.partial")
        save_file(tables, draft)
        os.replace(draft, path)
    tables = read_safetensors(path, items)
    return [tables[name] for name in items]


def _embed_items(model: SentenceTransformer, items: Items, name: str) -> np.ndarray:
    paths = [item for item in items if isinstance(item, Path)]
    if paths:
        return embed_images(model, paths)
    return embed(model, [str(item) for item in items], "query" if name == "queries" else "document", progress=True)


def _fingerprint(item: str | Path) -> Any:
    if isinstance(item, str):
        return item
    try:
        state = item.stat()
    except OSError as error:
        raise DataError(f"no such file: {item}") from error
    return [str(item), state.st_size, state.st_mtime_ns]


def embed_if_texts(
    corpus: Any, queries: Any | None, model: SentenceTransformer | str | None, progress: bool
) -> tuple[Any, Any, dict[str, Any] | None]:
    """Embed corpus and queries if they are texts; return them as they are if they are vectors.

    Args:
        corpus: Texts or vectors.
        queries: The same kind as ``corpus``, or None.
        model: The model that embeds texts or that made the vectors, if known.
        progress: Whether to show a progress bar.

    Returns:
        Corpus vectors, query vectors, and the description of the backbone (see :func:`backbone_record`), if known.

    Raises:
        DataError: If there are texts and no model.
    """
    are_texts = isinstance(corpus, Sequence) and len(corpus) > 0 and isinstance(corpus[0], str)
    if isinstance(model, str) and not are_texts:
        return corpus, queries, {"model": model, "width": int(as_numpy(corpus).shape[-1])}
    if model is None:
        if are_texts:
            raise DataError("texts need a `model` that embeds them.")
        return corpus, queries, None
    loaded = load_model(model) if isinstance(model, str) else model
    if are_texts:
        corpus = embed(loaded, corpus, "document", progress)
        queries = None if queries is None else embed(loaded, queries, "query", progress)
    return corpus, queries, backbone_record(loaded)
