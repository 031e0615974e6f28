"""Collections: corpus and query vectors, judgements (qrels), and the one row numbering that training uses.

A collection on disk is a folder in BEIR layout (``corpus.jsonl``, ``queries.jsonl``, ``qrels/SPLIT.tsv``) and a file
of vectors whose rows follow those files. Everything a user can get wrong here raises :class:`DataError` with one
clear line.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Qid = str
Did = str
SPLITS = ("train", "dev", "test")


class DataError(ValueError):
    """Input that cannot be used; the message is one line: what is wrong, where, and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Vectors
# ---------------------------------------------------------------------------------------------------------------------


def check_vectors(vectors: Any, what: str, chunk: int = 65536) -> np.ndarray:
    """Vectors as a 2-D float array, or a :class:`DataError` that says which rows are wrong.

    Args:
        vectors: Array, memory map or tensor, ``(N, D)``, any float type.
        what: Name for messages, for instance "corpus".
        chunk: Rows looked at together, so that a memory map is never read whole.

    Returns:
        The same rows as a numpy array; no copy of a numpy array is made.
    """
    array = as_numpy(vectors)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{what} vectors must be a table (rows, width), not empty, got shape {tuple(array.shape)}.")
    if array.dtype.kind != "f":
        raise DataError(f"{what} vectors must be floats, got {array.dtype}.")
    for start in range(0, len(array), chunk):
        rows = array[start : start + chunk].astype(np.float32, copy=False)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{what} vectors hold NaN or infinity in {_rows(start, ~finite)}. Remove or recompute them."
            )
        zero = ~rows.any(axis=1)
        if zero.any():
            raise DataError(
                f"{what} vectors are all zero in {_rows(start, zero)}, so they have no direction. "
                "Remove these rows (often the embedding of an empty text)."
            )
    return array


def _rows(start: int, wrong: Any) -> str:
    found = (np.flatnonzero(wrong) + start).tolist()
    return f"row{'s' if len(found) > 1 else ''} {_some(found)}"


def _some(items: Sequence[Any], limit: int = 3) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def as_numpy(vectors: Any) -> np.ndarray:
    """A numpy view of an array, list or torch tensor (bfloat16 becomes float32, which numpy lacks)."""
    if hasattr(vectors, "detach"):
        tensor = vectors.detach().cpu()
        return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    return np.asarray(vectors)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows as float32 of length 1. ``(N, D) -> (N, D)``."""
    rows = vectors.astype(np.float32)
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows, axis=1, keepdims=True)
    extreme = ~((length[:, 0] > 1e-12) & (length[:, 0] < 1e12))
    if extreme.any():  # their squares leave float32
        wide = vectors[extreme].astype(np.float64)
        with np.errstate(invalid="ignore"):  # a row of infinities becomes NaN, for the caller to see
            wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        rows[extreme], length[extreme] = wide, 1.0
    unit: np.ndarray = rows / length
    return unit


def load_vectors(path: str | Path, name: str | None = None) -> np.ndarray:
    """Read one table of vectors.

    Args:
        path: A ``.safetensors`` file or a ``.npy`` file (memory-mapped). Pickled arrays are refused.
        name: Which tensor of a safetensors file; needed when it holds several.

    Returns:
        ``(N, D)``, in the type of the file.

    Raises:
        DataError: If the file is missing, broken, or lacks the tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix == ".npy":
        try:
            table: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            return table
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is not a readable .npy file: {_one_line(error)}") from error
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path, None if name is None else (name,))
        if len(tensors) != 1:
            raise DataError(f"{path} holds {_some(sorted(tensors), 6)}; say which one is meant.")
        return next(iter(tensors.values()))
    raise DataError(f"{path}: vectors are read from .safetensors or .npy files, not {path.suffix or 'this'}.")


def _read_safetensors(path: Path, names: Iterable[str] | None) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            have = set(file.keys())
            wanted = have if names is None else set(names)
            if wanted - have:
                raise DataError(
                    f"{path} lacks the tensor {_some(sorted(wanted - have))}; it holds {_some(sorted(have), 6)}."
                )
            return {name: as_numpy(file.get_tensor(name)) for name in sorted(wanted)}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a readable safetensors file (truncated?): {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


class VectorTable:
    """Corpus and queries under one row numbering: documents are rows ``0 .. N-1``, queries ``N .. N+Q-1``.

    Rows come out as float32 of length 1. Tables up to ``in_memory_bytes`` are kept that way; larger ones stay where
    they are (a memory map stays on disk) and are converted as they are read.

    Args:
        corpus: ``(N, D)``, any float type.
        queries: ``(Q, D)`` or None.
        in_memory_bytes: Largest float32 table to hold in memory.
    """

    def __init__(self, corpus: Any, queries: Any | None = None, in_memory_bytes: int = 2 << 30) -> None:
        import torch

        corpus = check_vectors(corpus, "corpus")
        parts = [corpus]
        if queries is not None and len(queries):
            queries = check_vectors(queries, "query")
            if queries.shape[1] != corpus.shape[1]:
                raise DataError(
                    f"queries are {queries.shape[1]} wide and the corpus {corpus.shape[1]}; "
                    "both must come from the same model."
                )
            parts.append(queries)
        self.width = int(corpus.shape[1])
        self.corpus_size = len(corpus)
        self.query_size = len(queries) if len(parts) == 2 and queries is not None else 0
        self._parts = parts
        self._table: Tensor | None = None
        if len(self) * self.width * 4 <= in_memory_bytes:
            self._table = torch.from_numpy(np.concatenate([unit_rows(part) for part in parts]))

    def __len__(self) -> int:
        return self.corpus_size + self.query_size

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Vectors of these row ids. ``(n,) int64 -> (n, D)`` float32, unit norm."""
        import torch

        if self._table is not None:
            return self._table[rows]
        ids = rows.numpy()
        out = np.empty((len(ids), self.width), dtype=np.float32)
        document = ids < self.corpus_size
        out[document] = self._parts[0][ids[document]]
        if self.query_size:
            out[~document] = self._parts[1][ids[~document] - self.corpus_size]
        return torch.from_numpy(unit_rows(out))

    def query_ids(self, query_rows: np.ndarray) -> np.ndarray:
        """Row ids in this table of queries numbered from 0."""
        return np.asarray(query_rows) + self.corpus_size


# ---------------------------------------------------------------------------------------------------------------------
# Judgements
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Qrels:
    """Judgements in row numbers: document ``documents[j]`` has ``grades[j]`` for query ``queries[j]``.

    Sorted by query, then document. Grade 0 means judged and not relevant.

    Attributes:
        queries: Query rows, counted from 0, ``(J,)`` int64.
        documents: Corpus rows, ``(J,)`` int64.
        grades: Relevance, whole numbers, at least 0, ``(J,)`` float32.
    """

    queries: np.ndarray
    documents: np.ndarray
    grades: np.ndarray

    def __post_init__(self) -> None:
        order = np.lexsort((self.documents, self.queries))
        for name, dtype in (("queries", np.int64), ("documents", np.int64), ("grades", np.float32)):
            object.__setattr__(self, name, np.ascontiguousarray(np.asarray(getattr(self, name))[order], dtype=dtype))
        if not (np.isfinite(self.grades) & (self.grades >= 0) & (self.grades == np.round(self.grades))).all():
            raise DataError("relevance grades must be whole numbers, 0 or more.")
        twice = (np.diff(self.queries) == 0) & (np.diff(self.documents) == 0)
        if (twice & (np.diff(self.grades) != 0)).any():
            raise DataError("qrels judge the same query and document twice, with different grades.")
        if twice.any():
            for name in ("queries", "documents", "grades"):
                object.__setattr__(self, name, getattr(self, name)[np.r_[True, ~twice]])

    def __len__(self) -> int:
        return len(self.queries)

    @classmethod
    def from_dict(
        cls, qrels: Mapping[Any, Mapping[Any, float]], query_ids: Sequence[Any], corpus_ids: Sequence[Any]
    ) -> Qrels:
        """From ``{query id: {document id: grade}}``; the order of the two lists of ids gives the rows."""
        triples = ((query, document, grade) for query, grades in qrels.items() for document, grade in grades.items())
        return cls._from_triples(triples, query_ids, corpus_ids, "qrels")

    @classmethod
    def _from_triples(
        cls, triples: Iterable[tuple[Any, Any, float]], query_ids: Sequence[Any], corpus_ids: Sequence[Any], what: str
    ) -> Qrels:
        query_row = {identifier: row for row, identifier in enumerate(query_ids)}
        document_row = {identifier: row for row, identifier in enumerate(corpus_ids)}
        if len(query_row) != len(query_ids) or len(document_row) != len(corpus_ids):
            raise DataError("query ids and corpus ids must not repeat.")
        columns = list(zip(*triples, strict=True)) or [(), (), ()]
        for ids, known, side in ((columns[0], query_row, "queries"), (columns[1], document_row, "corpus")):
            unknown = sorted({str(i) for i in ids if i not in known})
            if unknown:
                lacking = f"the {side} lack{'s' if side == 'corpus' else ''}"
                raise DataError(f"{what} names {len(unknown)} ids that {lacking}: {_some(unknown)}.")
        return cls(
            np.array([query_row[q] for q in columns[0]], dtype=np.int64),
            np.array([document_row[d] for d in columns[1]], dtype=np.int64),
            np.array(columns[2], dtype=np.float32),
        )

    @cached_property
    def pairs(self) -> np.ndarray:
        """Relevant pairs (query row, document row), ``(P, 2)`` int64."""
        relevant = self.grades > 0
        return np.stack([self.queries[relevant], self.documents[relevant]], axis=1)

    @property
    def query_rows(self) -> np.ndarray:
        """Queries with a relevant document, rising, ``(Q,)``."""
        return np.unique(self.pairs[:, 0])

    def relevant_by_query(self) -> dict[int, dict[int, float]]:
        """Relevant documents of each query that has one: ``{query row: {document row: grade}}``, rising rows."""
        result: dict[int, dict[int, float]] = {}
        for query, document, grade in zip(
            self.queries.tolist(), self.documents.tolist(), self.grades.tolist(), strict=True
        ):
            if grade > 0:
                result.setdefault(query, {})[document] = grade
        return result

    def of_queries(self, rows: Iterable[int]) -> Qrels:
        """The judgements of these queries only."""
        keep = np.isin(self.queries, np.fromiter(rows, dtype=np.int64))
        return Qrels(self.queries[keep], self.documents[keep], self.grades[keep])

    def split(self, share: float, seed: int) -> tuple[Qrels, Qrels]:
        """Two parts by query: the first keeps ``1 - share`` of the queries, the second holds ``share`` out."""
        rows = self.query_rows
        np.random.default_rng(seed).shuffle(rows)
        held = round(len(rows) * share)
        return self.of_queries(rows[held:]), self.of_queries(rows[:held])


# ---------------------------------------------------------------------------------------------------------------------
# Collections
# ---------------------------------------------------------------------------------------------------------------------


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
    corpus_ids: list[Did]
    query_ids: list[Qid]
    qrels: dict[str, Qrels] = field(default_factory=dict)

    def judged(self, split: str) -> Qrels:
        """Judgements of a split that must exist and hold a relevant pair."""
        if split not in self.qrels:
            raise DataError(f"{self.name} has no {split} split; it has {_some(sorted(self.qrels)) or 'none'}.")
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
        from smec_st.encoding import embed_collection

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
    tensors = _read_safetensors(path, ("corpus", "queries"))
    return tensors["corpus"], tensors["queries"]


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file; a broken line is named."""
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)  # of bytes: wrong UTF-8 is a ValueError too
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({_one_line(error)}).") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: not a JSON object.")
            yield record


def _read_ids(path: Path) -> list[str]:
    ids: list[str] = []
    for number, record in enumerate(read_jsonl(path), start=1):
        if "_id" not in record:
            raise DataError(f"{path}, record {number}: lacks `_id`.")
        ids.append(str(record["_id"]))
    if len(set(ids)) != len(ids):
        repeated = [identifier for identifier, count in Counter(ids).items() if count > 1]
        raise DataError(f"{path} repeats the id {_some(repeated)}.")
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
    return Qrels._from_triples(triples, query_ids, corpus_ids, str(path))
