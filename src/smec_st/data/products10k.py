"""Read Products-10K, photographs of 10,000 products (https://products-10k.github.io)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from smec_st.data.collection import Collection
from smec_st.data.images import class_collection
from smec_st.data.jsonl import only_file
from smec_st.data.source import Tables, vectors_of
from smec_st.system.errors import DataError

TEST_TABLES = ("test_kaggletest.csv", "test.csv")


def load_products10k(folder: Path, vectors: Tables | None, model: str | None) -> Collection:
    """Read the unpacked archives: test images search for the training images of the same product.

    The folder holds ``train.csv`` (columns name, class, group), ``test_kaggletest.csv`` or ``test.csv`` (name, class
    and optionally more), and the images ``train/NAME`` and ``test/NAME``, which are only needed with ``model``.
    Training images are also training queries; a search does not return the query itself.

    The archives define neither a retrieval task nor a dev split. It is our choice that images of the same class are
    relevant, and that test images search the training images.

    Args:
        folder: Where the archives were unpacked.
        vectors: File or folder with the tables ``corpus`` (rows as in ``train.csv``) and ``queries`` (rows as in the
            test table).
        model: Image model that embeds them instead.
    """
    parts = {"train": _read_table(folder / "train.csv"), "test": _read_table(only_file(folder, TEST_TABLES))}
    files = {split: [folder / split / name for name, _ in rows] for split, rows in parts.items()}
    tables = vectors_of({"corpus": files["train"], "queries": files["test"]}, folder.name, vectors, model)
    ids, splits, labels = zip(
        *((f"{split}/{name}", split, label) for split, rows in parts.items() for name, label in rows), strict=True
    )
    return class_collection(folder.name, np.concatenate(tables), ids, splits, labels)


def _read_table(path: Path) -> list[tuple[str, str]]:
    """Return name and class of each image."""
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"name", "class"} <= set(reader.fieldnames or ()):
            raise DataError(f"{path}: expected the columns name and class, got {reader.fieldnames}.")
        return [(row["name"], row["class"]) for row in reader]
