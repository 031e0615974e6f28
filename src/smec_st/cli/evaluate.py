"""``smec-st evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smec_st.cli.options import FOLDER, collection_options, thinking

if TYPE_CHECKING:
    from smec_st.baselines import Transform
    from smec_st.compressor import Compressor
    from smec_st.data import Collection
    from smec_st.evaluation import Row


@click.command()
@click.argument("compressor", type=FOLDER)
@collection_options
@click.option("--split", default="test", show_default=True, help="Judgements to score against.")
@click.option("--json", "json_file", type=FOLDER, help="Write the rows here as well.")
def evaluate(
    compressor: Path,
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    split: str,
    json_file: Path | None,
) -> None:
    """Score a COMPRESSOR at each of its sizes, beside the original, truncation and PCA."""
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data import load_collection
        from smec_st.evaluation import print_rows
        from smec_st.evaluation.report import write_json

        loaded = Compressor.load(compressor)
        collection = load_collection(data, vectors, model, task)
    rows = score(loaded, collection, split)
    if json_file is not None:
        write_json(rows, json_file)
    print_rows(rows, f"{collection.name} ({split})")


def score(compressor: Compressor, collection: Collection, split: str) -> list[Row]:
    """Rows of the compressor and of those that are always beside it: original, truncation, PCA."""
    from smec_st import baselines
    from smec_st.data import DataError
    from smec_st.evaluation import sweep
    from smec_st.quantization.scoring import score_codes

    if collection.corpus.shape[1] != compressor.width:
        raise DataError(
            f"the vectors are {collection.corpus.shape[1]} wide; this compressor reads {compressor.width}."
        )
    methods: dict[str, Transform] = {
        "original": baselines.original,
        "truncate": baselines.truncate,
        "pca": baselines.pca(collection.corpus),
    }
    methods.setdefault(str(compressor.info.get("method", "compressor")), compressor.transform)
    judged = collection.judged(split)
    rows = sweep(
        collection.corpus,
        collection.queries,
        judged,
        methods,
        compressor.dims,
        own_document=collection.own_document,
    )
    chosen = [head for head in compressor.heads if "for_bytes" in head.info]
    return rows + [
        score_codes(head, collection.corpus, collection.queries, judged, collection.own_document) for head in chosen
    ]
