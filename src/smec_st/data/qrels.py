"""Relevance judgements that name queries and documents by row number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from smec_st.data.ids import plain_name
from smec_st.data.judgements import DOCUMENT_NAMES, QUERY_NAMES
from smec_st.data.vectors import as_numpy
from smec_st.system.errors import DataError, count, some

if TYPE_CHECKING:
    from typing import TypeAlias

    from smec_st.data.vectors import ArrayLike

    #: What public functions accept as judgements: :class:`Qrels`, ``{query row: {document row: grade}}``, or pairs of
    #: rows, ``(P, 2)``.
    Judgements: TypeAlias = "Qrels | Mapping[int, Mapping[int, float]] | ArrayLike"

#: Smallest number of validation queries; the mean over fewer is too noisy to choose by.
MIN_HELD_OUT = 20


Id = TypeVar("Id", str, int)


@dataclass(frozen=True)
class Qrels:
    """Relevance judgements: document ``documents[j]`` has the grade ``grades[j]`` for query ``queries[j]``.

    The constructor sorts the judgements by query, then by document, and drops exact repeats. Grade 0 means that the
    document was judged and is not relevant.

    Args:
        queries: Query rows, numbered from 0, ``(J,)`` int64.
        documents: Corpus rows, ``(J,)`` int64.
        grades: Relevance grades: whole numbers, at least 0, ``(J,)`` float32.

    Raises:
        DataError: If a grade is not a whole number of 0 or more, or a pair is judged twice with different grades.
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
        cls, qrels: Mapping[Id, Mapping[Id, float]], query_ids: Sequence[Id], corpus_ids: Sequence[Id]
    ) -> Qrels:
        """Build judgements from ``{query id: {document id: grade}}``.

        Args:
            qrels: The judgements by id.
            query_ids: Ids of all queries, in row order.
            corpus_ids: Ids of all documents, in row order.
        """
        triples = ((query, document, grade) for query, grades in qrels.items() for document, grade in grades.items())
        return cls.from_triples(triples, query_ids, corpus_ids, "qrels")

    @classmethod
    def from_triples(
        cls, triples: Iterable[tuple[Id, Id, float]], query_ids: Sequence[Id], corpus_ids: Sequence[Id], what: str
    ) -> Qrels:
        """Build judgements from (query id, document id, grade); error messages call the source ``what``.

        Raises:
            DataError: If ids repeat, or a judgement names an id that is not in the lists.
        """
        query_row = {identifier: row for row, identifier in enumerate(query_ids)}
        document_row = {identifier: row for row, identifier in enumerate(corpus_ids)}
        if len(query_row) != len(query_ids) or len(document_row) != len(corpus_ids):
            raise DataError("query ids and corpus ids must not repeat.")
        columns = list(zip(*triples, strict=True)) or [(), (), ()]
        for ids, known, side in ((columns[0], query_row, "queries"), (columns[1], document_row, "corpus")):
            unknown = sorted({str(i) for i in ids if i not in known})
            if unknown:
                lacking = f"the {side} lack{'s' if side == 'corpus' else ''}"
                raise DataError(f"{what} names {count(len(unknown), 'id')} that {lacking}: {some(unknown)}.")
        return cls(
            np.array([query_row[q] for q in columns[0]], dtype=np.int64),
            np.array([document_row[d] for d in columns[1]], dtype=np.int64),
            np.array(columns[2], dtype=np.float32),
        )

    @classmethod
    def joined(cls, parts: Iterable[Qrels]) -> Qrels:
        """Combine the judgements of several parts."""
        columns = zip(*((part.queries, part.documents, part.grades) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    @cached_property
    def pairs(self) -> np.ndarray:
        """The relevant pairs (query row, document row), ``(P, 2)`` int64."""
        relevant = self.grades > 0
        return np.stack([self.queries[relevant], self.documents[relevant]], axis=1)

    @property
    def query_rows(self) -> np.ndarray:
        """Rows of the queries that have a relevant document, ascending, ``(Q,)``."""
        return np.unique(self.pairs[:, 0])

    def relevant_by_query(self) -> dict[int, dict[int, float]]:
        """Group the relevant documents by query: ``{query row: {document row: grade}}``, rows ascending."""
        relevant = self.grades > 0
        rows, starts = np.unique(self.queries[relevant], return_index=True)
        documents, grades = self.documents[relevant].tolist(), self.grades[relevant].tolist()
        ends = np.append(starts, len(documents))[1:]
        return {
            row: dict(zip(documents[start:end], grades[start:end], strict=True))
            for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)
        }

    def of_queries(self, rows: Iterable[int]) -> Qrels:
        """Return only the judgements of the queries with these rows."""
        return self._where(np.isin(self.queries, np.fromiter(rows, dtype=np.int64)))

    def without_own(self, own_document: np.ndarray) -> Qrels:
        """Drop the judgements of a query on its own document, which searches leave out.

        Args:
            own_document: Row of each query's own document, -1 for none, ``(Q,)``.
        """
        return self._where(own_document[self.queries] != self.documents)

    def renumbered(self, corpus_rows: np.ndarray | None = None) -> Qrels:
        """Return the relevant judgements with row numbers for searching a part of the collection.

        Each query gets its position in :attr:`query_rows` as its row. Judgements of grade 0 are dropped.

        Args:
            corpus_rows: Rows of the documents that are searched, ascending, ``(n,)``. Each document gets its position
                in this array as its row. None searches the whole corpus, and keeps the document rows.

        Raises:
            ValueError: If a relevant document is not among ``corpus_rows``.
        """
        queries, documents = self.pairs.T
        if corpus_rows is not None:
            if not np.isin(documents, corpus_rows).all():
                raise ValueError("`corpus_rows` must hold every relevant document.")
            documents = np.searchsorted(corpus_rows, documents)
        return Qrels(np.searchsorted(self.query_rows, queries), documents, self.grades[self.grades > 0])

    def split(self, share: float, seed: int) -> tuple[Qrels, Qrels]:
        """Split by query: about ``1 - share`` of the queries go to the first part, ``share`` to the second.

        Queries that share a relevant document stay in one part, so that no relevant document of the second part is
        relevant in the first. This is impossible where most queries are connected through shared documents, as with
        class labels; queries are then drawn one by one.
        """
        rows, groups = self.query_rows, self._groups()
        wanted = round(len(rows) * share)
        drawn = np.arange(groups.max(initial=-1) + 1)
        np.random.default_rng(seed).shuffle(drawn)
        sizes = np.bincount(groups)[drawn]
        fits = np.zeros(len(drawn), dtype=bool)
        held = 0
        for position, size in enumerate(sizes.tolist()):
            fits[position] = held + size <= wanted
            held += size if fits[position] else 0
        if held < wanted / 2:
            np.random.default_rng(seed).shuffle(rows)
            return self.of_queries(rows[wanted:]), self.of_queries(rows[:wanted])
        is_held = np.isin(groups, drawn[fits])
        return self.of_queries(rows[~is_held]), self.of_queries(rows[is_held])

    def _where(self, keep: np.ndarray) -> Qrels:
        return Qrels(self.queries[keep], self.documents[keep], self.grades[keep])

    def _groups(self) -> np.ndarray:
        """Return the group of each of :attr:`query_rows`, ``(Q,)``.

        Queries with a relevant document in common are in one group. Groups are numbered by first appearance.
        """
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        rows, queries = np.unique(self.pairs[:, 0], return_inverse=True)
        documents, names = np.unique(self.pairs[:, 1], return_inverse=True)
        nodes = len(rows) + len(documents)
        edges = coo_matrix((np.ones(len(queries), dtype=bool), (queries, len(rows) + names)), shape=(nodes, nodes))
        groups: np.ndarray = connected_components(edges, directed=False)[1][: len(rows)]
        _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int64)
        order[np.argsort(first)] = np.arange(len(first))
        return order[numbers]

    def hold_out(self, share: float, seed: int) -> tuple[Qrels, Qrels | None]:
        """Split into training and validation queries; about ``share`` of the queries are for validation.

        At least :data:`MIN_HELD_OUT` queries are held out. Future queries will ask for documents that training has
        seen and for others, in unknown proportion. Half of the held-out queries therefore share no relevant document
        with the rest (see :meth:`split`), and the other half are drawn one by one.

        Returns:
            The training part and the validation part. When validation would take more than half of the queries, all
            judgements and None.
        """
        queries = len(self.query_rows)
        if queries < 2 * MIN_HELD_OUT:
            return self, None
        wanted = round(queries * max(share, MIN_HELD_OUT / queries))
        seen, unseen = self.split(wanted / queries / 2, seed)
        drawn = np.random.default_rng(seed).permutation(seen.query_rows)[: wanted - len(unseen.query_rows)]
        is_held = np.isin(self.query_rows, np.concatenate([unseen.query_rows, drawn]))
        return self.of_queries(self.query_rows[~is_held]), self.of_queries(self.query_rows[is_held])

    def folds(self, count: int, seed: int) -> tuple[Qrels, ...]:
        """Split the queries into ``count`` cross-validation folds.

        Folds in the first half share no relevant document with the second half, nor, as far as possible, with one
        another. The queries of the second half are drawn one by one; compare :meth:`hold_out`.
        """
        apart = count // 2
        drawn, left = self.split(apart / count, seed)
        parts = []
        for more in range(apart, 1, -1):
            left, part = left.split(1 / more, seed)
            parts.append(part)
        rows = np.random.default_rng(seed).permutation(drawn.query_rows)
        return (*parts, left, *(drawn.of_queries(part) for part in np.array_split(rows, count - apart)))


def places_among(rows: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Position of each document in some ascending corpus rows, -1 for documents that are not there, ``(n,)``.

    The counterpart of :meth:`Qrels.renumbered` for the document that is the query itself.
    """
    return np.where(np.isin(documents, rows), np.searchsorted(rows, documents), -1)


def as_qrels(qrels: Judgements, query_size: int, corpus_size: int) -> Qrels:
    """Convert judgements by row to :class:`Qrels` and check the row numbers.

    Args:
        qrels: Finished judgements, ``{query row: {document row: grade}}``, or relevant pairs ``(P, 2)`` of rows.
        query_size: Number of queries.
        corpus_size: Number of documents.

    Raises:
        DataError: If pairs have another shape, or a row does not exist.
    """
    if isinstance(qrels, Qrels):
        result = qrels
    elif isinstance(qrels, Mapping):
        wrong = [grades for grades in qrels.values() if not isinstance(grades, Mapping)]
        if wrong:
            raise DataError(f"qrels must be {{query row: {{document row: grade}}}}, got {wrong[0]!r:.60} for a query.")
        triples = [(q, d, g) for q, grades in qrels.items() for d, g in grades.items()]
        columns = [np.array(column) for column in zip(*triples, strict=True)] or [np.empty(0, dtype=int)] * 3
        if columns[2].dtype.kind not in "iufb":
            wrong_grades = [grade for grade in columns[2].tolist() if not isinstance(grade, int | float)]
            raise DataError(f"grades must be numbers, got {(wrong_grades or columns[2].tolist())[0]!r}.")
        result = Qrels(_row_numbers(columns[0]), _row_numbers(columns[1]), columns[2])
    else:
        pairs = as_numpy(qrels)
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise DataError(f"pairs of rows must be (P, 2), got shape {tuple(pairs.shape)}.")
        names = [plain_name(str(name)) for name in getattr(qrels, "columns", ())]
        if len(names) == 2 and (names[0] in DOCUMENT_NAMES or names[1] in QUERY_NAMES):
            pairs = pairs[:, ::-1]
        result = Qrels(_row_numbers(pairs[:, 0]), _row_numbers(pairs[:, 1]), np.ones(len(pairs)))
    for rows, size, what in ((result.queries, query_size, "query"), (result.documents, corpus_size, "document")):
        if len(rows) and not size:
            raise DataError(f"qrels need {'queries' if what == 'query' else 'documents'}, and there are none.")
        if len(rows) and not 0 <= rows.min() <= rows.max() < size:
            raise DataError(
                f"qrels name {what} row {rows.max() if rows.max() >= size else rows.min()}; there are {size}."
            )
    return result


def _row_numbers(rows: np.ndarray) -> np.ndarray:
    """Return row numbers as int64; whole numbers of a float type count, as ``numpy.loadtxt`` gives them."""
    if rows.dtype.kind in "iu" or (rows.dtype.kind == "f" and bool((rows == np.floor(rows)).all())):
        return rows.astype(np.int64)
    raise DataError(f"qrels name rows by whole numbers from 0, got {rows.tolist()[0]!r}.")
