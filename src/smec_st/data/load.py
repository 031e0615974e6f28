"""Load a collection of any known kind; the reader is chosen by the files that are there."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from smec_st.data.beir import load_beir, texts_file
from smec_st.data.blackbox import is_vector_folder, load_vector_folder, with_backbone
from smec_st.data.collection import Collection
from smec_st.data.embedding import model_record
from smec_st.data.fashion200k import LABELS, TASKS, load_fashion200k
from smec_st.data.hub import hub_records, load_hub
from smec_st.data.images import image_files, load_image_folder, load_image_list
from smec_st.data.jsonl import read_jsonl
from smec_st.data.products10k import load_products10k
from smec_st.data.source import Tables
from smec_st.data.sources import find_table, open_vectors
from smec_st.system.errors import DataError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_collection(
    folder: str | Path,
    vectors: str | Path | None = None,
    model: str | None = None,
    task: str | None = None,
    codes: str | None = None,
    strict: bool = False,
    similarity: str | None = None,
) -> Collection:
    """Load a collection with its vectors, which come from a file or are made by a model.

    These kinds are recognised:

    - a folder in BEIR layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``. Judgements may also be
      ``.txt`` (TREC), ``.csv``, ``.jsonl`` or ``.parquet``, and all but parquet may be gzipped;
    - the id of a collection on the Hugging Face Hub, for instance ``BeIR/scifact``, with its judgements in
      ``NAME-qrels`` (BEIR) or in the same repository (MTEB, NanoBEIR);
    - class-labelled images: a folder with ``images.jsonl``, or with the images as ``SPLIT/CLASS/NAME.jpg``;
    - Products-10K and Fashion-200K in the layout of their unpacked archives;
    - a folder of vectors without texts: ``corpus`` and ``queries`` in any format of
      :func:`~smec_st.data.open_vectors`, and ``qrels/SPLIT.tsv``. It needs no ``vectors``;
      those of another model may replace its own.

    Args:
        folder: Folder, or id on the Hub. A local folder takes precedence over the Hub.
        vectors: A ``.safetensors``, ``.npz`` or ``.h5`` file with the tables ``corpus`` and ``queries`` (for
            class-labelled images: one table ``images``), or a folder of files of vectors with these names. A table
            with ids is joined by id to the texts; without ids, rows are in file order.
        model: Sentence-transformers model (id or path) that embeds the texts or images instead; results are cached.
        task: Fashion-200K only: "text-to-image" (default) or "image-to-text".
        codes: What whole numbers or base64 in the files of vectors are; see :func:`~smec_st.data.open_vectors`.
        strict: Whether to refuse judgements that name unknown ids, and grades that are negative or fractions. By
            default they are left out, read as 0, and rounded up; the counts are logged.
        similarity: How the model scores, "cosine" or "dot"; by default as the model or the file of vectors says.

    Raises:
        DataError: If a file is missing or broken, or files do not match each other.
    """
    path, vectors = Path(os.path.expanduser(folder)), None if vectors is None else os.path.expanduser(vectors)
    source = None if vectors is None else Tables(Path(vectors), codes)
    read = _reader(path, needs_vectors=vectors is not None or model is not None)
    if read is load_vector_folder and vectors is None and model is None:
        found = load_vector_folder(path, None, None, strict, codes)
        return _described(with_backbone(found, Tables(path, codes)), None, similarity)
    if (vectors is None) == (model is None):
        raise DataError("give either a file of vectors (--vectors) or a model that makes them (--model).")
    if vectors is not None and not Path(vectors).exists():
        raise DataError(f"no such file: {vectors}")  # before the texts are read
    if read is load_fashion200k:
        return _described(load_fashion200k(path, source, model, task or TASKS[0]), model, similarity)
    if task is not None:
        raise DataError(f"only Fashion-200K has a choice of tasks, and {path} is something else.")
    if read in (load_beir, load_hub, load_vector_folder):
        read = partial(read, strict=strict)
    collection = read(path, source, model)
    return _described(collection if source is None else with_backbone(collection, source), model, similarity)


def _described(collection: Collection, model: str | None, similarity: str | None) -> Collection:
    """Add to a collection what is known of the model that embedded its items, and how that scores."""
    known = dict(collection.backbone) if model is None else {**collection.backbone, **model_record(model)}
    if similarity is not None:
        known["similarity"] = similarity
    return dataclasses.replace(collection, backbone=known)


def text_records(folder: str | Path) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]] | None:
    """Read the documents and the queries of a collection of texts, with ``_id``, ``title`` and ``text``; else None.

    Args:
        folder: As for :func:`load_collection`.
    """
    path = Path(folder)
    read = _reader(path, needs_vectors=True)
    if read is load_beir:
        return read_jsonl(texts_file(path, "corpus")), read_jsonl(texts_file(path, "queries"))
    return hub_records(path) if read is load_hub and not _holds_vectors(path) else None


def _holds_vectors(path: Path) -> bool:
    """Whether a folder's tables are vectors and not texts, which the names of its files do not tell."""
    try:
        return path.is_dir() and open_vectors(find_table(path, "corpus") or path).width > 0
    except DataError:
        return False


def _reader(path: Path, needs_vectors: bool) -> Callable[[Path, Tables | None, str | None], Collection]:
    if not path.is_dir():
        if not HUB_ID.fullmatch(path.as_posix()):
            raise DataError(f"no such folder: {path}")
        return load_hub
    if any(texts_file(path, side).exists() for side in ("corpus", "queries")):
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
        f"{path} is not a known kind of collection; it should hold corpus.jsonl and queries.jsonl, vectors "
        "named corpus and queries (corpus.npy and queries.npy), images.jsonl, or images as train/CLASS/NAME.jpg."
    )
