"""Embed a collection's texts once, with the prompts the model itself names, and remember the vectors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.data.errors import DataError, one_line
from smec_st.data.jsonl import read_jsonl
from smec_st.data.vectors import as_numpy, read_safetensors
from smec_st.quiet import quiet_libraries

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_model(model: str) -> SentenceTransformer:
    """A sentence-transformers model by id or path; :class:`~smec_st.data.DataError` when there is none."""
    from sentence_transformers import SentenceTransformer

    try:
        with quiet_libraries():
            return SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot load the model {model!r}: {one_line(error)}") from error


def backbone_record(model: SentenceTransformer) -> dict[str, Any]:
    """What a compressor must remember of the model whose vectors it was fitted on."""
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
    """``encode_query`` or ``encode_document``, as ``side`` says; ``(n, D)`` float32, unit norm."""
    encode = model.encode_query if side == "query" else model.encode_document
    vectors = encode(list(texts), convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=progress)
    return as_numpy(vectors)


def document_text(record: dict[str, Any]) -> str:
    """Title and text of a BEIR corpus line, joined as BEIR does."""
    return f"{record.get('title') or ''} {record.get('text') or ''}".strip()


def embed_collection(folder: Path, model_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a BEIR folder's corpus and queries, cached by model and content.

    The cache is ``$SMEC_ST_CACHE``, or ``~/.cache/smec-st``.
    """
    from safetensors.numpy import save_file

    documents = [document_text(record) for record in read_jsonl(folder / "corpus.jsonl")]
    queries = [str(record.get("text") or "") for record in read_jsonl(folder / "queries.jsonl")]
    model = load_model(model_id)
    key = hashlib.sha256(json.dumps([backbone_record(model), model_id, documents, queries]).encode()).hexdigest()
    root = Path(os.environ.get("SMEC_ST_CACHE") or Path.home() / ".cache" / "smec-st")
    path = root / "vectors" / f"{key[:32]}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "corpus": embed(model, documents, "document", progress=True),
            "queries": embed(model, queries, "query", progress=True),
        }
        draft = path.with_suffix(f".{os.getpid()}.partial")
        save_file(tensors, draft)
        os.replace(draft, path)
    tensors = read_safetensors(path, ("corpus", "queries"))
    return tensors["corpus"], tensors["queries"]


def embed_if_texts(
    corpus: Any, queries: Any | None, model: SentenceTransformer | str | None, progress: bool
) -> tuple[Any, Any, dict[str, Any] | None]:
    """Vectors for texts, vectors for vectors; and what is known of the backbone."""
    texts = isinstance(corpus, Sequence) and len(corpus) > 0 and isinstance(corpus[0], str)
    if isinstance(model, str) and not texts:
        return corpus, queries, {"model": model, "width": int(as_numpy(corpus).shape[-1])}
    if model is None:
        if texts:
            raise DataError("texts need a `model` that embeds them.")
        return corpus, queries, None
    loaded = load_model(model) if isinstance(model, str) else model
    if texts:
        corpus = embed(loaded, corpus, "document", progress)
        queries = None if queries is None else embed(loaded, queries, "query", progress)
    return corpus, queries, backbone_record(loaded)
