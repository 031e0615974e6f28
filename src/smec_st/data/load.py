"""The one entry to every collection: it looks at what is there and picks the reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from smec_st.data.beir import load_beir
from smec_st.data.blackbox import is_vector_folder, load_vector_folder, with_backbone
from smec_st.data.collection import Collection
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
) -> Collection:
    """Read a collection, with vectors from a file or made by a model.

    Known are:

    - a folder in BEIR layout: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``;
    - the id of a BEIR collection on the Hugging Face Hub, for instance ``BeIR/scifact``;
    - class-labelled images: a folder with ``images.jsonl``, or with the images as ``SPLIT/CLASS/NAME.jpg``;
    - Products-10K and Fashion-200K as their archives unpack;
    - a folder of vectors alone: ``corpus`` and ``queries`` in any format of :func:`~smec_st.data.open_vectors`, and
      ``qrels/SPLIT.tsv``. It needs neither ``vectors`` nor ``model``.

    Args:
        folder: Folder, or id on the Hub; a folder of that name wins.
        vectors: A safetensors file with the tensors ``corpus`` and ``queries`` (for class-labelled images: one tensor
            ``images``), or a folder of ``.npy`` files of these names; rows in file order.
        model: Sentence-transformers model (id or path) that embeds the texts or images instead; results are cached.
        task: For Fashion-200K: "text-to-image", the default, or "image-to-text".

    Raises:
        DataError: If a file is missing or broken, or files do not fit each other.
    """
    path, source = Path(folder), None if vectors is None else Path(vectors)
    read = _reader(path, needs_vectors=vectors is not None or model is not None)
    if read is load_vector_folder and vectors is None and model is None:
        return with_backbone(read(path, None, None), path, None)
    if (vectors is None) == (model is None):
        raise DataError("give either a file of vectors or a model that makes them.")
    if read is load_fashion200k:
        return load_fashion200k(path, source, model, task or TASKS[0])
    if task is not None:
        raise DataError(f"only Fashion-200K has a choice of tasks, and {path} is something else.")
    collection = read(path, source, model)
    return collection if source is None else with_backbone(collection, path, source)


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
    is_repository = (path / "corpus").is_dir() and (path / "queries").is_dir()  # a copy of one on the Hub: texts alone
    if is_vector_folder(path) and not (is_repository and needs_vectors):
        return load_vector_folder
    if is_repository:
        return load_hub
    raise DataError(
        f"{path} is no known collection; it should hold corpus.jsonl and queries.jsonl, images.jsonl, "
        "or images as train/CLASS/NAME.jpg."
    )
