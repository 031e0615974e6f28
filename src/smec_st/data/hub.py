"""Load BEIR collections from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st.data.beir import Triple, beir_collection
from smec_st.data.collection import Collection
from smec_st.data.errors import DataError, one_line
from smec_st.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from datasets import Dataset


def load_hub(dataset: Path, vectors: Path | None, model: str | None) -> Collection:
    """Load a collection in the layout that the BEIR organisation uses on the Hub.

    Args:
        dataset: ``ORG/NAME`` with the configurations "corpus" and "queries". The judgements are the splits of
            ``ORG/NAME-qrels``. Local folders with these two names, copied from the Hub, are read instead.
        vectors: File or folder with the tables ``corpus`` and ``queries``, rows in the order of the Hub.
        model: Model that embeds the texts instead.

    Raises:
        DataError: If the Hub cannot be reached, or one of the parts is missing.
    """
    dataset_id = dataset.as_posix()
    corpus, queries = hub_records(dataset)
    judged = {split: _triples(_rows(part)) for split, part in _load(f"{dataset_id}-qrels").items()}
    return beir_collection(dataset_id, corpus, queries, judged, vectors, model)


def hub_records(dataset: Path) -> tuple[Iterator[dict[str, Any]], Iterator[dict[str, Any]]]:
    """Read the documents and the queries of :func:`load_hub`, without judgements and vectors."""
    corpus, queries = (
        chain.from_iterable(map(_rows, _load(dataset.as_posix(), side).values())) for side in ("corpus", "queries")
    )
    return corpus, queries


def _load(dataset_id: str, name: str | None = None) -> dict[str, Dataset]:
    from datasets import Features, Value, load_dataset
    from datasets.exceptions import DatasetsError

    columns = {"query-id": Value("string"), "corpus-id": Value("string"), "score": Value("float64")}
    try:
        with quiet_libraries():
            # Without declared types, the id "007" would be read as the number 7.
            return dict(load_dataset(dataset_id, name, features=None if name else Features(columns)))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        part = f"the {name} of {dataset_id}" if name else dataset_id
        raise DataError(f"cannot load {part} from a folder or from the Hub: {one_line(error)}") from error


def _rows(part: Dataset) -> Iterator[dict[str, Any]]:
    for batch in part.iter(batch_size=1000):  # many times faster than iterating row by row
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _triples(rows: Iterable[dict[str, Any]]) -> Iterator[Triple]:
    return ((row["query-id"], row["corpus-id"], row["score"]) for row in rows)
