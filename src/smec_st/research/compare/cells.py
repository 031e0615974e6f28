"""A cell of the comparison: one method on one collection with one seed, and the files that store its result."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from smec_st import __version__
from smec_st.data import Collection, load_collection
from smec_st.data.safetensors import read_safetensors, write_safetensors
from smec_st.evaluation.metrics import PerQuery
from smec_st.research.baselines import Method, Size
from smec_st.system.files import write_text

VERSIONS = ("smec-st", "sentence-transformers", "torch", "numpy")


@dataclass(frozen=True)
class Source:
    """The arguments of :func:`~smec_st.data.load_collection`."""

    folder: str | Path
    vectors: Path | None = None
    model: str | None = None
    task: str | None = None
    codes: str | None = None
    strict: bool = False

    def load(self) -> Collection:
        """Load the collection."""
        return load_collection(self.folder, self.vectors, self.model, self.task, codes=self.codes, strict=self.strict)


@dataclass(frozen=True)
class Cell:
    """One fit that is scored at all its sizes.

    Attributes:
        source: Where the collection comes from.
        collection: Name of the collection.
        fingerprint: Hash of the collection, see :func:`fingerprint`.
        name: Name of the method.
        method: The method.
        dims: Sizes, descending.
        seed: Random seed.
        labels: Whether training judgements may be used.
    """

    source: Source
    collection: str
    fingerprint: str
    name: str
    method: Method
    dims: tuple[int, ...]
    seed: int
    labels: bool

    @property
    def settings(self) -> dict[str, Any]:
        """Class and fields of the method."""
        return {"class": type(self.method).__name__, **dataclasses.asdict(cast(Any, self.method))}

    @property
    def key(self) -> str:
        """A hash of everything that the result depends on, so that changed data or settings make another cell."""
        seed = self.seed if self.method.is_random else None
        parts = (self.fingerprint, self.settings, self.dims, seed, self.labels, __version__)
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def path(self, out: Path) -> Path:
        """Return the path of the JSON file; values per query are in a safetensors file of the same name."""
        seed = f"seed-{self.seed}" if self.method.is_random else "seed-any"
        return out / "cells" / self.collection.replace("/", "--") / self.name / f"{seed}-{self.key}.json"

    def is_done(self, out: Path) -> bool:
        """Whether the cell has been run. The JSON file is written last, so it never exists without the other."""
        return self.path(out).is_file()


@dataclass(frozen=True)
class SizeScores:
    """The scores of a cell at one size.

    Attributes:
        size: The size.
        values: For each metric one value per judged query.
        distances: Changes of the geometry, by name.
    """

    size: Size
    values: PerQuery
    distances: dict[str, float]


@dataclass(frozen=True)
class Result:
    """The result of a cell.

    Attributes:
        sizes: Scores by size, in descending order of bytes.
        fit_seconds: Time to fit.
        score_seconds: Time to score all sizes.
        learned_from_labels: Whether the method used judgements.
        split: The split it was scored on.
    """

    sizes: tuple[SizeScores, ...]
    fit_seconds: float
    score_seconds: float
    learned_from_labels: bool
    split: str

    def save(self, cell: Cell, out: Path) -> None:
        """Write both files with crash-safe renames, the JSON file last."""
        path = cell.path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            _tensor_name(scores.size, metric): values.astype(np.float32)
            for scores in self.sizes
            for metric, values in scores.values.items()
        }
        write_safetensors(path.with_suffix(".safetensors"), tensors)
        record = {
            "collection": cell.collection,
            "method": cell.name,
            "seed": cell.seed,
            "dims": cell.dims,
            "labels": cell.labels,
            "settings": cell.settings,
            "split": self.split,
            "learned_from_labels": self.learned_from_labels,
            "fit_seconds": round(self.fit_seconds, 3),
            "score_seconds": round(self.score_seconds, 3),
            "versions": versions(),
            "sizes": [
                {
                    "dim": scores.size.dim,
                    "bytes_per_vector": scores.size.bytes,
                    **{metric: float(values.mean()) for metric, values in scores.values.items()},
                    **scores.distances,
                }
                for scores in self.sizes
            ],
        }
        write_object(path, record)

    @classmethod
    def load(cls, cell: Cell, out: Path) -> Result:
        """Read the files that :meth:`save` wrote."""
        path = cell.path(out)
        record = json.loads(path.read_text(encoding="utf-8"))
        tensors = read_safetensors(path.with_suffix(".safetensors"), None)
        metrics = sorted({name.partition("/")[2] for name in tensors})
        known = {"dim", "bytes_per_vector", *metrics}
        sizes = []
        for entry in record["sizes"]:
            size = Size(entry["dim"], entry["bytes_per_vector"])
            values = {metric: tensors[_tensor_name(size, metric)].astype(np.float64) for metric in metrics}
            sizes.append(SizeScores(size, values, {k: v for k, v in entry.items() if k not in known}))
        fields = ("fit_seconds", "score_seconds", "learned_from_labels", "split")
        return cls(tuple(sizes), **{name: record[name] for name in fields})


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {package: importlib.metadata.version(package) for package in VERSIONS}


def write_object(path: Path, content: object) -> None:
    """Write a JSON file. It appears only when it is complete."""
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def _tensor_name(size: Size, metric: str) -> str:
    return f"{size.dim}-{size.bytes}/{metric}"


def fingerprint(collection: Collection) -> str:
    """Hash a collection's vectors and judgements."""
    digest = hashlib.sha256()
    tables = {"corpus": collection.corpus, "queries": collection.queries, "own": collection.own_document}
    for split, qrels in collection.qrels.items():
        for side in ("queries", "documents", "grades"):
            tables[f"{split}/{side}"] = getattr(qrels, side)
    for name, table in tables.items():
        digest.update(f"{name} {table.shape} {table.dtype}".encode())
        for start in range(0, len(table), 65536):
            digest.update(np.ascontiguousarray(table[start : start + 65536]).tobytes())
    return digest.hexdigest()
