"""Test collections on disk: a folder in BEIR layout, and the vectors of its texts."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from smec_st.data.embedding import embed_collection
from smec_st.data.errors import DataError, some
from smec_st.data.jsonl import read_jsonl
from smec_st.data.qrels import Qrels
from smec_st.data.vectors import check_vectors, load_vectors, read_safetensors

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Collection:
    """A test collection: vectors of corpus and queries, with judgements per split.

    Attributes:
        name: Folder name.
        corpus: ``(N, D)`` vectors, rows as in ``corpus_ids``.
        queries: ``(Q, D)`` vectors, rows as in ``query_ids``.
        corpus_ids: Document ids.
        query_ids: Query ids.
        qrels: Judgements by split name; a split that the folder lacks is absent.
    """

    name: str
    corpus: np.ndarray
    queries: np.ndarray
    corpus_ids: list[str]
    query_ids: list[str]
    qrels: dict[str, Qrels] = field(default_factory=dict)

    def judged(self, split: str) -> Qrels:
        """Judgements of a split that must exist and hold a relevant pair."""
        if split not in self.qrels:
            raise DataError(f"{self.name} has no {split} split; it has {some(sorted(self.qrels)) or 'none'}.")
        if len(self.qrels[split].pairs) == 0:
            raise DataError(f"the {split} split of {self.name} holds no relevant pair.")
        return self.qrels[split]


def load_collection(folder: str | Path, vectors: str | Path | None = None, model: str | None = None) -> Collection:
    """Read a folder in BEIR layout, with vectors from a file or embedded by a model.

    Args:
        folder: Holds ``corpus.jsonl``, ``queries.jsonl`` (each line with ``_id``) and ``qrels/SPLIT.tsv``.
        vectors: A safetensors file with the tensors ``corpus`` and ``queries``, or a folder with ``corpus.npy`` and
            ``queries.npy``; rows in file order.
        model: Sentence-transformers model (id or path) that embeds the texts instead; results are cached.

    Raises:
        DataError: If a file is missing or broken, or files do not fit each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    if (vectors is None) == (model is None):
        raise DataError("give either a file of vectors or a model that makes them.")
    corpus_ids = _read_ids(folder / "corpus.jsonl")
    query_ids = _read_ids(folder / "queries.jsonl")
    if model is not None:
        corpus, queries = embed_collection(folder, model)
    else:
        assert vectors is not None
        corpus, queries = _load_pair(Path(vectors))
    for what, table, ids in (("corpus", corpus, corpus_ids), ("query", queries, query_ids)):
        check_vectors(table, what)
        if len(table) != len(ids):
            raise DataError(
                f"{len(table)} {what} vectors for {len(ids)} ids in {folder.name}: rows must follow the file."
            )
    if corpus.shape[1] != queries.shape[1]:
        raise DataError(
            f"queries are {queries.shape[1]} wide and the corpus {corpus.shape[1]}; use one model for both."
        )
    qrels = {
        split: _read_qrels(folder / "qrels" / f"{split}.tsv", query_ids, corpus_ids)
        for split in SPLITS
        if (folder / "qrels" / f"{split}.tsv").is_file()
    }
    return Collection(folder.name, corpus, queries, corpus_ids, query_ids, qrels)


def _load_pair(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if path.is_dir():
        return load_vectors(path / "corpus.npy"), load_vectors(path / "queries.npy")
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix != ".safetensors":
        raise DataError(f"{path}: a collection's vectors are one .safetensors file or a folder of .npy files.")
    tensors = read_safetensors(path, ("corpus", "queries"))
    return tensors["corpus"], tensors["queries"]


def _read_ids(path: Path) -> list[str]:
    ids: list[str] = []
    for number, record in enumerate(read_jsonl(path), start=1):
        if "_id" not in record:
            raise DataError(f"{path}, record {number}: lacks `_id`.")
        ids.append(str(record["_id"]))
    if len(set(ids)) != len(ids):
        repeated = [identifier for identifier, count in Counter(ids).items() if count > 1]
        raise DataError(f"{path} repeats the id {some(repeated)}.")
    return ids


def _read_qrels(path: Path, query_ids: Sequence[str], corpus_ids: Sequence[str]) -> Qrels:
    triples: list[tuple[str, str, float]] = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not row or (number == 1 and row[0] == "query-id"):
                continue
            try:
                query, document, grade = row[0], row[1], float(row[2])
            except (IndexError, ValueError) as error:
                raise DataError(
                    f"{path}, line {number}: expected query-id, corpus-id and score, tab-separated."
                ) from error
            triples.append((query, document, grade))
    return Qrels.from_triples(triples, query_ids, corpus_ids, str(path))
