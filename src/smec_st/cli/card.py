"""``smec-st card``."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smec_st.cli.options import FOLDER, collection_options, thinking

if TYPE_CHECKING:
    from smec_st.compressor import Compressor
    from smec_st.data import Collection
    from smec_st.hub.evidence import Evidence

LIBRARIES = ("smec-st", "numpy", "torch", "transformers", "sentence-transformers")


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("repo_id")
@collection_options
@click.option("--split", default="test", show_default=True, help="Judgements to score against.")
@click.option("--dataset", help="Id of the collection on the Hub.")
@click.option("--data-license", help="Licence of the training data, in words.")
@click.option("--source", help="Where the training data comes from.")
@click.option("--license", help="The Hub's short name of the compressor's licence, such as apache-2.0.")
def card(
    compressor: Path,
    repo_id: str,
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    split: str,
    dataset: str | None,
    data_license: str | None,
    source: str | None,
    license: str | None,
) -> None:
    """Measure COMPRESSOR and write its model card, for REPO_ID, beside it; `push` takes the figures from there."""
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data import load_collection
        from smec_st.hub.card import write_card

        loaded = Compressor.load(compressor)
        collection = load_collection(data, vectors, model, task)
    with thinking("measuring"):
        evidence = dataclasses.replace(
            measure(loaded, collection, split), dataset=dataset, data_license=data_license, source=source
        )
    evidence.save(compressor)
    write_card(loaded, compressor, repo_id, head_only=True, evidence=evidence, license=license)
    click.echo(f"wrote README.md, quality.png and evidence.json into {compressor}")


def measure(compressor: Compressor, collection: Collection, split: str = "test") -> Evidence:
    """Score a compressor at each of its sizes, with 95 % intervals of the difference to the original vectors.

    Args:
        compressor: What to score.
        collection: Corpus, queries and judgements.
        split: Which judgements.
    """
    import numpy as np

    from smec_st import baselines
    from smec_st.compare.statistics import paired_interval
    from smec_st.evaluation.report import Row
    from smec_st.evaluation.sweep import METRICS
    from smec_st.hub.card import METRIC
    from smec_st.hub.evidence import Evidence
    from smec_st.metrics import evaluate_retrieval

    qrels = collection.judged(split)
    judged = qrels.query_rows
    local = qrels.renumbered()
    own = None if collection.own_document is None else collection.own_document[judged]
    methods = {
        "original": baselines.original,
        "truncate": baselines.truncate,
        "pca": baselines.pca(collection.corpus),
        str(compressor.info.get("method", "compressor")): compressor.transform,
    }
    rows: list[Row] = []
    reference = np.zeros(0)
    for method, transform in methods.items():
        for dim in [compressor.width] if method == "original" else compressor.dims:
            corpus, asked = transform(collection.corpus, dim), transform(collection.queries[judged], dim)
            scores = evaluate_retrieval(corpus, asked, local, METRICS, own)
            extra = {}
            if method == "original":
                reference = scores[METRIC]
            elif method not in ("truncate", "pca"):
                interval = paired_interval(scores[METRIC], reference)
                extra = {f"original_{name}": value for name, value in interval._asdict().items()}
            means = {metric: float(values.mean()) for metric, values in scores.items()}
            rows.append(Row(method=method, dim=dim, bytes_per_vector=4 * dim, metrics=means, extra=extra))
    return Evidence(
        rows=rows,
        collection=collection.name,
        split=split,
        queries=len(judged),
        documents=len(collection.corpus),
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    )
