"""Read Fashion-200K, photographs of clothes with descriptions (https://github.com/xthan/fashion-200k)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smec_st.data.collection import Collection
from smec_st.data.embedding import Items
from smec_st.data.qrels import Qrels
from smec_st.data.source import Tables, vectors_of
from smec_st.system.errors import DataError

LABELS = "labels/*_detect_all.txt"
TASKS = ("text-to-image", "image-to-text")


def load_fashion200k(folder: Path, vectors: Tables | None, model: str | None, task: str = TASKS[0]) -> Collection:
    """Read the unpacked archives: descriptions search for their images, or images for their description.

    The folder holds ``labels/CATEGORY_SPLIT_detect_all.txt`` (lines of image path, detection score and description,
    tab-separated; splits train and test) and the images under those paths, which are only needed with ``model``. The
    papers score the five categories separately; keep the two label files of one category to do the same.

    Matryoshka-Adaptor and Search-Adaptor do not say how they pair and split the data. We chose this: equal
    descriptions are one text; an image and its description are relevant to each other; all items of the other kind
    are searched. A query that occurs in a test file is a test query with all of its judgements, and never a training
    query.

    Args:
        folder: Where the archives were unpacked.
        vectors: File or folder with the tables ``corpus`` and ``queries`` of this task. Images and texts are in the
            order of their first occurrence, with the label files sorted by name.
        model: Model that embeds images and texts instead.
        task: "text-to-image" or "image-to-text".
    """
    if task not in TASKS:
        raise DataError(f"Fashion-200K has the tasks {' and '.join(TASKS)}, got {task!r}.")
    image_row: dict[str, int] = {}
    text_row: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []  # (image, text)
    from_test_file: list[bool] = []
    for path in sorted(folder.glob(LABELS)):
        is_test = path.name.endswith("_test_detect_all.txt")
        for image, text in _read_labels(path):
            pairs.append((image_row.setdefault(image, len(image_row)), text_row.setdefault(text, len(text_row))))
            from_test_file.append(is_test)
    if not pairs:
        raise DataError(f"the label files of {folder} are empty.")
    images, texts = list(image_row), list(text_row)
    sides: list[tuple[list[str], Items]] = [(texts, texts), (images, [folder / image for image in images])]
    rows = np.array(pairs)[:, ::-1]  # (text, image)
    if task == "image-to-text":
        sides, rows = sides[::-1], rows[:, ::-1]
    (query_ids, query_items), (corpus_ids, corpus_items) = sides
    corpus, queries = vectors_of({"corpus": corpus_items, "queries": query_items}, folder.name, vectors, model)
    is_test_query = np.isin(rows[:, 0], rows[np.array(from_test_file), 0])
    qrels = {
        split: Qrels(rows[chosen, 0], rows[chosen, 1], np.ones(chosen.sum()))
        for split, chosen in (("train", ~is_test_query), ("test", is_test_query))
    }
    return Collection(f"{folder.name} ({task})", corpus, queries, corpus_ids, query_ids, qrels)


def _read_labels(path: Path) -> Iterator[tuple[str, str]]:
    """Yield image path and description of each line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            columns = line.split("\t")
            if len(columns) != 3:
                raise DataError(f"{path}, line {number}: expected image path, score and description, tab-separated.")
            yield columns[0], columns[2].strip()
