"""Read collections of images in which the images of a query's class are relevant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from smec_st.data.beir import Side
from smec_st.data.collection import SPLIT_NAMES, SPLITS, Collection
from smec_st.data.jsonl import read_jsonl
from smec_st.data.qrels import Qrels
from smec_st.data.source import Tables, vectors_of
from smec_st.system.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def class_collection(
    name: str, images: np.ndarray, ids: Sequence[str], splits: Sequence[str], labels: Sequence[str]
) -> Collection:
    """Build a collection in which images search the training images for those of the same class.

    Every image, ``(n, D)``, is a query of its split, which is any name in ``SPLIT_NAMES``. A training image is its own
    document, so a search does not return it.

    Raises:
        DataError: If a split is unknown, or there is no training image.
    """
    unknown = sorted(set(splits) - set(SPLIT_NAMES))
    if unknown:
        raise DataError(f"{name} has an image of the split {unknown[0]!r}; use train, dev or test.")
    split = np.array([SPLIT_NAMES[given] for given in splits])
    label = np.unique(np.array(labels), return_inverse=True)[1]
    corpus = np.flatnonzero(split == "train")
    if len(corpus) == 0:
        raise DataError(f"{name} has no train images, which are the corpus.")
    own = np.full(len(split), -1, dtype=np.int64)
    own[corpus] = np.arange(len(corpus))
    qrels = {
        part: class_qrels(np.flatnonzero(split == part), label, label[corpus])
        for part in SPLITS
        if (split == part).any()
    }
    return Collection(name, images[corpus], images, [ids[row] for row in corpus.tolist()], list(ids), qrels, own)


def class_qrels(queries: np.ndarray, query_labels: np.ndarray, corpus_labels: np.ndarray) -> Qrels:
    """Judge every document of a query's class as relevant to the query.

    Args:
        queries: Query rows to judge, ``(q,)``.
        query_labels: Class number of every query, ``(Q,)``.
        corpus_labels: Class number of every document, ``(N,)``.
    """
    documents = np.argsort(corpus_labels)  # grouped by class
    sizes = np.bincount(corpus_labels, minlength=query_labels.max() + 1)
    starts = np.cumsum(sizes) - sizes
    labels = query_labels[queries]
    counts = sizes[labels]
    first_pair = np.cumsum(counts) - counts
    positions = np.arange(counts.sum()) - np.repeat(first_pair - starts[labels], counts)
    return Qrels(np.repeat(queries, counts), documents[positions], np.ones(len(positions)))


def load_image_list(folder: Path, vectors: Tables | None, model: str | None) -> Collection:
    """Read ``images.jsonl`` (each line with ``_id``, ``split`` and ``label``) and the vectors of its images.

    These are the tensor ``images`` of a file, or ``images.npy`` in a folder, in the order of the lines. No ``model``
    can make them, because the list names no image files.
    """
    if model is not None:
        raise DataError(f"{folder} lists images without their files; give a file of vectors.")
    path = folder / "images.jsonl"
    records = list(read_jsonl(path))
    for number, record in enumerate(records, start=1):
        lacking = [key for key in ("split", "label") if key not in record]
        if lacking:
            raise DataError(f"{path}, record {number}: lacks `{lacking[0]}`.")
    ids = Side.read(records, str(path)).ids
    (images,) = vectors_of({"images": ids}, folder.name, vectors, None, {"images": ids})
    splits, labels = ([str(record[key]) for record in records] for key in ("split", "label"))
    return class_collection(folder.name, images, ids, splits, labels)


def load_image_folder(folder: Path, vectors: Tables | None, model: str | None) -> Collection:
    """Read images in folders ``SPLIT/CLASS``. Their ids are their paths relative to ``folder``, sorted.

    Their vectors are made by the model, or are the tensor ``images`` of a file or ``images.npy`` in a folder, in the
    order of the ids.
    """
    paths = sorted(image_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    ids = [path.relative_to(folder).as_posix() for path in paths]
    (images,) = vectors_of({"images": paths}, folder.name, vectors, model, {"images": ids})
    return class_collection(
        folder.name, images, ids, [path.parts[-3] for path in paths], [path.parent.name for path in paths]
    )


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files in ``SPLIT/CLASS`` folders with a known split name."""
    found = (path for split in SPLIT_NAMES for path in (folder / split).glob("*/*"))
    return (path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
