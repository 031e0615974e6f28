"""Read relevance judgements: TREC's four columns, BEIR's three, a header in any order, JSON lines, parquet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from smec_st.data.ids import find_rows, id_text, plain_name
from smec_st.data.jsonl import open_text, plain_suffix, read_json_file, read_jsonl
from smec_st.data.sources.cells import csv_rows
from smec_st.data.sources.columns import SHARD, parquet_errors
from smec_st.system.errors import DataError, count, some, tell

Triple = tuple[str, str, float]  # query id, document id, grade

SUFFIXES = (".tsv", ".txt", ".qrels", ".csv", ".jsonl", ".json", ".parquet")
# Names of the columns, without case, `-`, `_` and spaces.
QUERY_NAMES = ("queryid", "query", "qid", "topicid", "topic", "questionid")
DOCUMENT_NAMES = ("corpusid", "docid", "documentid", "docno", "passageid", "pid", "document", "doc")
GRADE_NAMES = ("score", "grade", "relevance", "rel", "label", "judgment", "judgement", "qrel", "isrelevant")
LARGEST_GRADE = 1000  # in a file without a header, above which it is rather an id, as in triples of ids

Columns = tuple[Any, Any, Any]  # names or positions of the query, the document, and the grade (None: all are 1)


def read_splits(folder: Path) -> dict[str, Iterator[Triple]]:
    """Return the judgements of every ``qrels/SPLIT.*`` in a folder, by split; each is read when iterated.

    Raises:
        DataError: If two files are of one split.
    """
    parts: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "qrels").glob("*")):
        if plain_suffix(path) not in SUFFIXES or not path.is_file():
            tell(f"{path} is left out; judgements end in {', '.join(SUFFIXES)}.")
        else:
            stem = path.name.removesuffix(".gz").rpartition(".")[0]
            shard = SHARD.fullmatch(stem)
            split = parts.setdefault(shard[1] if shard else stem, {})
            if stem in split or (split and not (shard and all(map(SHARD.fullmatch, split)))):
                seen = [*(other.name for other in split.values()), path.name]
                raise DataError(f"{folder} has two {shard[1] if shard else stem} splits ({some(seen)}); keep one.")
            split[stem] = path
    return {split: chain.from_iterable(map(read_qrels, paths.values())) for split, paths in parts.items()}


def read_qrels(path: Path) -> Iterator[Triple]:
    """Yield the judgements of a file, which may be gzipped.

    A header names the columns in any order. Without one, three columns are query, document and grade, and four are
    TREC's query, iteration, document and grade.

    Raises:
        DataError: If a line is something else.
    """
    suffix = plain_suffix(path)
    if suffix == ".jsonl":
        yield from triples_of(read_jsonl(path), str(path))
    elif suffix == ".json":
        yield from _of_dict(path)
    elif suffix == ".parquet":
        yield from triples_of(_parquet_records(path), str(path))
    else:
        yield from _text_triples(path, suffix)


def triples_of(records: Iterable[Mapping[str, Any]], what: str) -> Iterator[Triple]:
    """Yield the judgements of records with a query, a document and a grade under any of their known names."""
    columns: Columns | None = None
    for number, record in enumerate(records, start=1):
        where = f"{what}, record {number}"
        columns = columns or _named_columns(list(record), where)
        if columns is None:
            raise DataError(f"{where}: expected query-id, corpus-id and score, got {some(list(record), 6)}.")
        if any(name is not None and name not in record for name in columns):
            raise DataError(f"{where}: lacks {some([name for name in columns if name not in record])}.")
        yield _triple(record, columns, where)


def tidy(triples: Iterable[Triple], query_ids: Sequence[str], corpus_ids: Sequence[str], what: str) -> list[Triple]:
    """Return the judgements that can be used, and tell how many were changed or left out.

    Judgements that name an unknown query or document are left out. Negative grades, which mark junk, become 0.
    Fractions are rounded up, so that every positive grade stays relevant.

    Raises:
        DataError: If there are judgements but none can be used, or a grade is not a number.
    """
    listed = list(triples)
    known = []
    queries, documents = [query for query, _, _ in listed], [document for _, document, _ in listed]
    for given, ids, side in ((queries, query_ids, "queries"), (documents, corpus_ids, "corpus")):
        rows, unknown = find_rows(given, {key: row for row, key in enumerate(ids)})
        known.append(rows)
        if unknown:
            lost = int((rows < 0).sum())
            lacking = f"the {side} lack{'s' if side == 'corpus' else ''}"
            message = f"{what} names {count(len(unknown), 'id')} that {lacking}: {some(unknown)}"
            if lost == len(listed):
                raise DataError(f"{message}; theirs are {some(ids)}. No judgement is left.")
            tell(f"{message}. {lost} of {count(len(listed), 'judgement')} {'is' if lost == 1 else 'are'} left out.")
    kept, negative, fractions = [], 0, 0
    for (_, _, grade), query, document in zip(listed, *(rows.tolist() for rows in known), strict=True):
        if not math.isfinite(grade):
            raise DataError(f"{what} has a grade that is {grade}.")
        if query >= 0 and document >= 0:
            negative, fractions = negative + (grade < 0), fractions + (grade > 0 and grade != round(grade))
            kept.append((query_ids[query], corpus_ids[document], float(max(0, math.ceil(grade)))))
    if listed and not kept:
        raise DataError(f"{what}: no judgement names both a known query and a known document.")
    if negative:
        tell(f"{what}: {count(negative, 'negative grade is', 'negative grades are')} read as 0, not relevant.")
    if fractions:
        tell(f"{what}: {count(fractions, 'grade is a fraction', 'grades are fractions')}, rounded up.")
    return kept


def _of_dict(path: Path) -> Iterator[Triple]:
    """Yield the judgements of ``{query id: {document id: grade}}``."""
    content = read_json_file(path)
    if not isinstance(content, dict) or not all(isinstance(grades, dict) for grades in content.values()):
        raise DataError(f"{path}: expected an object of {{query id: {{document id: grade}}}}.")
    for query, grades in content.items():
        for document, grade in grades.items():
            yield _triple((query, document, grade), (0, 1, 2), f"{path}, query {query}")


def _text_triples(path: Path, suffix: str) -> Iterator[Triple]:
    columns: Columns | None = None
    width, has_header = 0, False
    for number, cells in _text_rows(path, suffix):
        where = f"{path}, line {number}"
        if columns is None:
            width = len(cells)
            columns = _named_columns(cells, where)
            if columns is not None:
                names = [cell.strip() for cell in cells]
                columns = (names.index(columns[0]), names.index(columns[1]), columns[2] and names.index(columns[2]))
                has_header = True
                continue
            columns = {3: (0, 1, 2), 4: (0, 2, 3)}.get(width)
        is_trec = columns == (0, 2, 3) and width == 4
        if columns is None or len(cells) != width or (is_trec and not _is_iteration(cells[1])):
            raise DataError(f"{where}: expected query-id, corpus-id and score, tab-separated, got {some(cells, 6)}.")
        found = _triple(cells, columns, where)
        if not has_header and found[2] > LARGEST_GRADE:
            raise DataError(
                f"{where}: {cells[columns[2]]} looks like an id, not a grade; name the columns in a header."
            )
        yield found


def _text_rows(path: Path, suffix: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells: CSV by commas, everything else by tabs, or by spaces where a line has no tab."""
    if suffix == ".csv":
        yield from csv_rows(path)
        return
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t") if "\t" in line else line.split()


def _named_columns(names: Sequence[str], where: str) -> Columns | None:
    """Return the names of query, document and grade; None if these are no names of judgements."""
    found = []
    for known in (QUERY_NAMES, DOCUMENT_NAMES, GRADE_NAMES):
        matches = [name.strip() for name in names if plain_name(name) in known]
        if len(matches) > 1:
            raise DataError(f"{where}: {' and '.join(matches)} may be the same column of judgements; keep one.")
        found.append(matches[0] if matches else None)
    query, document, grade = found
    if query is None or document is None:
        return None
    if grade is None:
        if len(names) > 2:
            raise DataError(f"{where}: none of {some(list(names), 6)} is a known name of the grade, such as score.")
        tell(f"{where}: there is no column of grades, so every judgement is relevant.")
    return query, document, grade


def _triple(row: Any, columns: Columns, where: str) -> Triple:
    query, document, grade = columns
    try:
        value = 1.0 if grade is None else float(str(row[grade]).replace("_", "no number"))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: expected query-id, corpus-id and score, the score is {row[grade]!r:.40}."
        ) from error
    return id_text(row[query], where), id_text(row[document], where), value


def _is_iteration(text: str) -> bool:
    """Return whether a cell is TREC's second column: 0, Q0, or the round of a judgement such as 4.5."""
    return text.upper() == "Q0" or text.replace(".", "", 1).isdecimal()


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with parquet_errors(path):
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
