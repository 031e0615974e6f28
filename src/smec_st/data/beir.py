"""Read collections of texts in the BEIR layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smec_st.data.collection import SPLIT_NAMES, Collection
from smec_st.data.ids import find_id, id_text
from smec_st.data.jsonl import only_file, read_jsonl
from smec_st.data.judgements import Triple, read_splits, tidy
from smec_st.data.own import find_own_documents
from smec_st.data.qrels import Qrels
from smec_st.data.source import Tables, vectors_of
from smec_st.data.vectors import unit_rows
from smec_st.system.errors import DataError, some, tell

SAME_VECTOR = 1e-3  # unit vectors up to this distance apart count as the same item
DOCUMENT_TEXT = {"text": "a document's text is in `text`", "title": "its title in `title`"}
QUERY_TEXT = {"text": "a query's text is in `text`"}


@dataclass(frozen=True)
class Side:
    """Ids and texts of the corpus or of the queries, in file order; a text that is absent or not kept is empty."""

    ids: list[str]
    titles: list[str]
    texts: list[str]

    @classmethod
    def read(
        cls,
        records: Iterable[Mapping[str, Any]],
        what: str,
        keep: Container[str] | None = None,
        needed: Mapping[str, str] | None = None,
    ) -> Side:
        """Read records with ``_id`` (or another id name, in all of them) and optionally ``title`` and ``text``.

        Args:
            records: The records in file order.
            what: What they are, for error messages.
            keep: Ids whose texts are kept in memory; None for all.
            needed: Fields of which every record must have one, because the texts are embedded, and what each holds.

        Raises:
            DataError: If an id is missing or repeated, or a text is needed and its field is missing or holds none.
        """
        side = cls([], [], [])
        name = None
        for number, record in enumerate(records, start=1):
            name = name or ("_id" if "_id" in record else find_id(record) or "_id")
            if name not in record:
                raise DataError(f"{what}, record {number}: lacks `{name}`.")
            identifier = id_text(record[name], f"{what}, record {number}")
            if needed:
                _check_texts(record, needed, f"{what}, record {number}")
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


def _check_texts(record: Mapping[str, Any], needed: Mapping[str, str], where: str) -> None:
    """Raise a :class:`DataError` if none of the fields is there, or one of them holds something else than a text."""
    if not any(name in record for name in needed):
        raise DataError(f"{where} has the fields {some(list(record), 9)}; {', and '.join(needed.values())}.")
    for name in needed:
        if isinstance(record.get(name), list | dict):
            raise DataError(f"{where}: `{name}` holds a {type(record[name]).__name__} and no text.")


def load_beir(folder: Path, vectors: Tables | None, model: str | None, strict: bool = False) -> Collection:
    """Read a folder with ``corpus.jsonl``, ``queries.jsonl`` (each line with ``_id``) and ``qrels/SPLIT.tsv``."""
    corpus, queries = (read_jsonl(texts_file(folder, side)) for side in ("corpus", "queries"))
    return beir_collection(folder.name, corpus, queries, read_splits(folder), vectors, model, strict)


def texts_file(folder: Path, side: str) -> Path:
    """Return ``SIDE.jsonl`` or ``SIDE.jsonl.gz`` in a folder, whichever is there; both are refused."""
    return only_file(folder, [f"{side}.jsonl", f"{side}.jsonl.gz"])


def beir_collection(
    name: str,
    corpus_records: Iterable[Mapping[str, Any]],
    query_records: Iterable[Mapping[str, Any]],
    judged: Mapping[str, Iterable[Triple]],
    vectors: Tables | None,
    model: str | None,
    strict: bool = False,
) -> Collection:
    """Build a collection from the parts of a BEIR dataset and its vectors.

    A document is a query's own document if both have the same id and the same text (the document's title may be left
    out). Where a text is missing, their vectors must be the same instead, because equal ids may be a coincidence.

    Records have ``_id`` and optionally ``title`` and ``text``, which a ``model`` needs. Judgements come by split;
    splits whose name is not in ``SPLIT_NAMES`` are left out. Unless ``strict``, judgements of unknown ids and grades
    that are no whole numbers of 0 or more are left out or rounded, see :func:`~smec_st.data.judgements.tidy`.
    """
    queries = Side.read(query_records, f"the queries of {name}", needed=QUERY_TEXT if model else None)
    corpus = Side.read(
        corpus_records,
        f"the corpus of {name}",
        keep=None if model else set(queries.ids),
        needed=DOCUMENT_TEXT if model else None,
    )
    items = {"corpus": [corpus.full_text(row) for row in range(len(corpus.ids))], "queries": queries.texts}
    ids = {"corpus": corpus.ids, "queries": queries.ids}
    corpus_vectors, query_vectors = vectors_of(items, name, vectors, model, ids)

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
        if split is None:
            tell(f"{name}: the judgements {given} are left out; splits are named {', '.join(SPLIT_NAMES)}.")
            continue
        what = f"the {split} split of {name}"
        usable = triples if strict else tidy(triples, queries.ids, corpus.ids, what)
        qrels[split] = Qrels.from_triples(usable, queries.ids, corpus.ids, what)
    own = find_own_documents(corpus.ids, queries.ids, is_same)
    found = Collection(name, corpus_vectors, query_vectors, corpus.ids, queries.ids, qrels, own)
    return replace(found, titles=corpus.titles, texts=corpus.texts) if model else found
