"""Load BEIR collections from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st.data.beir import beir_collection
from smec_st.data.collection import Collection
from smec_st.data.judgements import triples_of
from smec_st.data.source import Tables
from smec_st.system.errors import DataError, one_line
from smec_st.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from datasets import Dataset


def load_hub(dataset: Path, vectors: Tables | None, model: str | None, strict: bool = False) -> Collection:
    """Load a collection in the layout of BEIR, MTEB or NanoBEIR on the Hub.

    The dataset ``ORG/NAME`` has the configurations "corpus" and "queries". The judgements are the splits of its
    configuration "qrels" or "default", or of ``ORG/NAME-qrels``. Local folders with these names, copied from the Hub,
    are read instead. The other arguments are those of :func:`~smec_st.data.load_collection`.

    Raises:
        DataError: If the Hub cannot be reached, or one of the parts is missing.
    """
    dataset_id = dataset.as_posix()
    corpus, queries = hub_records(dataset)
    names = _configurations(dataset_id)
    inside = next((name for name in ("qrels", "default") if name in names and "corpus" in names), None)
    parts = _load(dataset_id, inside) if inside else _load(f"{dataset_id}-qrels")
    judged = {split: triples_of(_rows(part), f"{dataset_id}, {split}") for split, part in parts.items()}
    return beir_collection(dataset_id, corpus, queries, judged, vectors, model, strict)


def _configurations(dataset_id: str) -> list[str]:
    """Return the names of a repository's configurations; none if it cannot be read."""
    from datasets import get_dataset_config_names
    from datasets.exceptions import DatasetsError

    try:
        with quiet_libraries():
            return list(get_dataset_config_names(dataset_id))
    except (OSError, ValueError, RuntimeError, DatasetsError):
        return []


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
    for batch in part.with_format("arrow").iter(batch_size=1000):  # many times faster than iterating row by row
        yield from batch.to_pylist()
