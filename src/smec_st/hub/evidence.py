"""Measurements of a compressor, saved next to it for its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smec_st.data import DataError
from smec_st.evaluation.report import Row
from smec_st.system.files import write_text

FILE = "evidence.json"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Scores by size, and how they were measured.

    Attributes:
        rows: One per method and size, including the method ``original``. ``extra`` may hold ``original_difference``,
            ``original_low`` and ``original_high``: the mean difference to the original and its 95 % confidence
            interval over the test queries.
        collection: Name of the collection.
        dataset: Id of the collection on the Hub, if it is there.
        split: The split that was scored.
        queries: Number of queries that were scored.
        documents: Number of documents that were searched.
        data_license: Licence of the training data, in words.
        source: Where the data comes from.
        command: The command that measured the scores.
        versions: Versions of the libraries used, by name.
    """

    rows: Sequence[Row]
    collection: str
    dataset: str | None = None
    split: str = "test"
    queries: int | None = None
    documents: int | None = None
    data_license: str | None = None
    source: str | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write ``evidence.json`` into a folder."""
        flat = asdict(self)
        flat["rows"] = flat.pop("rows")  # last, because they are many
        write_text(Path(folder, FILE), json.dumps(flat, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Evidence | None:
        """Read ``evidence.json`` or the ``report.json`` of a fit from a compressor's folder; None if neither exists.

        Raises:
            DataError: If the file is damaged.
        """
        for name, read in ((FILE, cls._of_evidence), ("report.json", cls._of_report)):
            path = Path(folder, name)
            if path.is_file():
                try:
                    return read(json.loads(path.read_text(encoding="utf-8")))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        return None

    @classmethod
    def _of_evidence(cls, content: dict[str, Any]) -> Evidence:
        return cls(**{**content, "rows": [Row(**row) for row in content["rows"]]})

    @classmethod
    def _of_report(cls, content: list[dict[str, Any]]) -> Evidence:
        plain = ("method", "dim", "bytes_per_vector", "collection")
        rows = [
            Row(
                method=row["method"],
                dim=row["dim"],
                bytes_per_vector=row["bytes_per_vector"],
                metrics={key: value for key, value in row.items() if key not in plain and isinstance(value, float)},
            )
            for row in content
        ]
        return cls(rows=rows, collection="the collection it was fitted on")
