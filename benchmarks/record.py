"""How a benchmark's rows are kept: with its arguments, the collections by name, and the versions that made them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from smec_st.system.files import write_text

PACKAGES = ("smec-st", "sentence-transformers", "transformers", "torch", "numpy")


def write_record(path: Path, options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write what is there so far; no path of this machine goes into it."""
    folders = options.data if isinstance(options.data, list) else [options.data]
    plain = (int, float, list)
    others = {
        name: value if isinstance(value, plain) else str(value)
        for name, value in vars(options).items()
        if name not in ("data", "model")
    }
    record = {
        "data": [folder.name for folder in folders],
        "arguments": {
            name: value if isinstance(value, int | float | list) else str(value) for name, value in others.items()
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def open_record(path: Path, threads: int, **arguments: Any) -> dict[str, Any]:
    """What a file holds of its collections, to go on with, under the present versions and arguments; sets threads."""
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"collections": {}}
    record["versions"] = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "torch")},
        "faiss": faiss.__version__,
    }
    record["arguments"] = {**arguments, "threads": threads}
    return record
