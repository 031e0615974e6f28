"""Load a collection of any known kind; the reader is chosen by the files that are there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from smec_st.data.beir import load_beir
from smec_st.data.blackbox import is_vector_folder, load_vector_folder, with_backbone
from smec_st.data.collection import Collection
from smec_st.data.embedding import model_record
from smec_st.data.errors import DataError
from smec_st.data.fashion200k import LABELS, TASKS, load_fashion200k
from smec_st.data.hub import load_hub
from smec_st.data.images import image_files, load_image_folder, load_image_list
from smec_st.data.products10k import load_products10k

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_collection(
    folder: str | Path,
    vectors: str | Path | None = None,
    model: str | None = None,
    task: str | None = None,
    similarity: str | None = None,
) -> Collection:
    """Load a collection with its vectors, which come from a file or are made by a model.

    These kinds are recognised:

    - a folder in BEIR layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``;
    - the id of a BEIR collection on the Hugging Face Hub, for instance ``BeIR/scifact``;
    - class-labelled images: a folder with ``images.jsonl``, or with the images as ``SPLIT/CLASS/NAME.jpg``;
    - Products-10K and Fashion-200K in the layout of their unpacked archives;
    - a folder of vectors without texts: ``corpus`` and ``queries`` in any format of
      :func:`~smec_st.data.open_vectors`, and ``qrels/SPLIT.tsv``. It needs neither ``vectors`` nor ``model``.

    Args:
        folder: Folder, or id on the Hub. A local folder takes precedence over the Hub.
        vectors: A safetensors file with the tensors ``corpus`` and ``queries`` (for class-labelled images: one tensor
            ``images``), or a folder of ``.npy`` files with these names; rows in file order.
        model: Sentence-transformers model (id or path) that embeds the texts or images instead; results are cached.
        task: Fashion-200K only: "text-to-image" (default) or "image-to-text".
        similarity: How the model scores, "cosine" or "dot"; by default as the model or the file of vectors says.

    Raises:
        DataError: If a file is missing or broken, or files do not match each other.
    """
    path, source = Path(folder), None if vectors is None else Path(vectors)
    read = _reader(path, needs_vectors=vectors is not None or model is not None)
    if read is load_vector_folder and vectors is None and model is None:
        return _described(with_backbone(read(path, None, None), path, None), None, similarity)
    if (vectors is None) == (model is None):
        raise DataError("give either a file of vectors or a model that makes them.")
    if vectors is not None and not Path(vectors).exists():
        raise DataError(f"no such file: {vectors}")  # before the texts are read
    if read is load_fashion200k:
        return _described(load_fashion200k(path, source, model, task or TASKS[0]), model, similarity)
    if task is not None:
        raise DataError(f"only Fashion-200K has a choice of tasks, and {path} is something else.")
    collection = read(path, source, model)
    return _described(collection if source is None else with_backbone(collection, path, source), model, similarity)


def _described(collection: Collection, model: str | None, similarity: str | None) -> Collection:
    """Add to a collection what is known of the model that embedded its items, and how that scores."""
    known = dict(collection.backbone) if model is None else {**collection.backbone, **model_record(model)}
    if similarity is not None:
        known["similarity"] = similarity
    return dataclasses.replace(collection, backbone=known)


def _reader(path: Path, needs_vectors: bool) -> Callable[[Path, Path | None, str | None], Collection]:
    if not path.is_dir():
        if not HUB_ID.fullmatch(path.as_posix()):
            raise DataError(f"no such folder: {path}")
        return load_hub
    if (path / "corpus.jsonl").exists() or (path / "queries.jsonl").exists():
        return load_beir
    if (path / "images.jsonl").exists():
        return load_image_list
    if (path / "train.csv").exists():
        return load_products10k
    if any(path.glob(LABELS)):
        return load_fashion200k
    if any(image_files(path)):
        return load_image_folder
    # A local copy of a Hub repository holds parquet files of texts, which also look like a folder of vectors.
    is_hub_copy = (path / "corpus").is_dir() and (path / "queries").is_dir()
    if is_vector_folder(path) and not (is_hub_copy and needs_vectors):
        return load_vector_folder
    if is_hub_copy:
        return load_hub
    raise DataError(
        f"{path} is not a known kind of collection; it should hold corpus.jsonl and queries.jsonl, images.jsonl, "
        "or images as train/CLASS/NAME.jpg."
    )
