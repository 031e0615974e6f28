"""Read collections of texts in the BEIR layout."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.collection import SPLIT_NAMES, Collection
from smec_st.data.errors import DataError, some
from smec_st.data.jsonl import read_jsonl
from smec_st.data.own import find_own_documents
from smec_st.data.qrels import Qrels
from smec_st.data.source import vectors_of
from smec_st.data.vectors import unit_rows

Triple = tuple[str, str, float]  # query id, document id, grade

SAME_VECTOR = 1e-3  # unit vectors up to this distance apart count as the same item


@dataclass(frozen=True)
class Side:
    """Ids and texts of the corpus or of the queries, in file order; a text that is absent or not kept is empty."""

    ids: list[str]
    titles: list[str]
    texts: list[str]

    @classmethod
    def read(cls, records: Iterable[Mapping[str, Any]], what: str, keep: Container[str] | None = None) -> Side:
        """Read records with ``_id`` and optionally ``title`` and ``text``.

        Args:
            records: The records.
            what: What error messages call the source.
            keep: Ids whose texts are kept in memory; None keeps all.

        Raises:
            DataError: If an id is missing or repeated.
        """
        side = cls([], [], [])
        for number, record in enumerate(records, start=1):
            if "_id" not in record:
                raise DataError(f"{what}, record {number}: lacks `_id`.")
            identifier = str(record["_id"])
            kept = keep is None or identifier in keep
            side.ids.append(identifier)
            side.titles.append(str(record.get("title") or "") if kept else "")
            side.texts.append(str(record.get("text") or "") if kept else "")
        if len(set(side.ids)) != len(side.ids):
            repeated = [identifier for identifier, count in Counter(side.ids).items() if count > 1]
            raise DataError(f"{what} repeats the id {some(repeated)}.")
        return side

    def full_text(self, row: int) -> str:
        """Join title and text as BEIR does."""
        return f"{self.titles[row]} {self.texts[row]}".strip()


def load_beir(folder: Path, vectors: Path | None, model: str | None) -> Collection:
    """Read a folder with ``corpus.jsonl``, ``queries.jsonl`` (each line with ``_id``) and ``qrels/SPLIT.tsv``."""
    corpus, queries = read_jsonl(folder / "corpus.jsonl"), read_jsonl(folder / "queries.jsonl")
    return beir_collection(folder.name, corpus, queries, read_splits(folder), vectors, model)


def beir_collection(
    name: str,
    corpus_records: Iterable[Mapping[str, Any]],
    query_records: Iterable[Mapping[str, Any]],
    judged: Mapping[str, Iterable[Triple]],
    vectors: Path | None,
    model: str | None,
) -> Collection:
    """Build a collection from the parts of a BEIR dataset and its vectors.

    A document is a query's own document if both have the same id and the same text (the document's title may be left
    out). Where a text is missing, their vectors must be the same instead, because equal ids may be a coincidence.

    Args:
        name: Name of the collection.
        corpus_records: Documents, with ``_id`` and optionally ``title`` and ``text``.
        query_records: Queries, likewise.
        judged: Judgements by split. Splits whose name is not in ``SPLIT_NAMES`` are left out.
        vectors: File or folder with the tables ``corpus`` and ``queries``, or None.
        model: Model that embeds the texts instead, or None.
    """
    queries = Side.read(query_records, f"the queries of {name}")
    corpus = Side.read(corpus_records, f"the corpus of {name}", keep=None if model else set(queries.ids))
    items = {"corpus": [corpus.full_text(row) for row in range(len(corpus.ids))], "queries": queries.texts}
    corpus_vectors, query_vectors = vectors_of(items, name, vectors, model)

    def is_same(document: int, query: int) -> bool:
        document_text, query_text = items["corpus"][document], queries.texts[query].strip()
        if document_text and query_text:
            return query_text in (document_text, corpus.texts[document].strip())
        pair = unit_rows(np.stack([corpus_vectors[document], query_vectors[query]]))
        return bool(np.linalg.norm(pair[0] - pair[1]) <= SAME_VECTOR)

    qrels: dict[str, Qrels] = {}
    for given, triples in judged.items():
        split = SPLIT_NAMES.get(given)
        if split in qrels:
            raise DataError(f"{name} has two {split} splits; keep one.")
        if split is not None:
            qrels[split] = Qrels.from_triples(triples, queries.ids, corpus.ids, f"the {split} split of {name}")
    own = find_own_documents(corpus.ids, queries.ids, is_same)
    found = Collection(name, corpus_vectors, query_vectors, corpus.ids, queries.ids, qrels, own)
    return replace(found, titles=corpus.titles, texts=corpus.texts) if model else found


def read_splits(folder: Path) -> dict[str, Iterator[Triple]]:
    """Return the judgements of every ``qrels/SPLIT.tsv`` in a folder, by file name; each is read when iterated."""
    return {path.stem: read_qrels(path) for path in sorted((folder / "qrels").glob("*.tsv"))}


def read_qrels(path: Path) -> Iterator[Triple]:
    """Yield the judgements of a ``qrels/SPLIT.tsv``, with or without a header line."""
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not row or (number == 1 and row[0] == "query-id"):
                continue
            try:
                yield row[0], row[1], float(row[2])
            except (IndexError, ValueError) as error:
                raise DataError(
                    f"{path}, line {number}: expected query-id, corpus-id and score, tab-separated."
                ) from error
