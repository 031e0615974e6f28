"""What every analysis starts from, and the files it leaves."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st.data import Collection, VectorTable
from smec_st.evaluation.report import save_figure
from smec_st.fitting.config import HELD_OUT
from smec_st.research.baselines import TrainingData
from smec_st.system.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSIONS = ("smec-st", "sentence-transformers", "torch", "numpy", "scipy")


def training_data(collection: Collection) -> TrainingData:
    """Judgements to train on and to watch: the dev split, or a tenth of the training queries where there is none.

    Raises:
        DataError: If there is no train split.
    """
    train = collection.judged("train")
    queries = train.query_rows
    dev = collection.qrels.get("dev")
    if dev is None:
        train, dev = train.split(HELD_OUT, seed=0)
    table = VectorTable(collection.corpus, collection.queries, collection.own_document)
    return TrainingData(table, train, dev, queries)


def write_analysis(
    out: Path,
    name: str,
    collection: Collection,
    arguments: Mapping[str, Any],
    findings: Mapping[str, Any],
    figure: Figure,
) -> dict[str, Any]:
    """Write ``NAME.json`` and ``NAME.png``, each under another name first, and return what the JSON file holds.

    Args:
        out: Folder; made when it is missing.
        name: Of the analysis.
        collection: What was analysed.
        arguments: Everything that decides the result, seeds included.
        findings: JSON-able results.
        figure: The plot.
    """
    result = {
        "analysis": name,
        "collection": collection.name,
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "width": int(collection.corpus.shape[1]),
        "arguments": dict(arguments),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
        **findings,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{name}.json", result, indent=1)
    save_figure(figure, out / f"{name}.png")
    return result
