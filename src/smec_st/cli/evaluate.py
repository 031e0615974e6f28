"""``smec-st evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smec_st.cli.options import FOLDER, collection_options, thinking

if TYPE_CHECKING:
    from smec_st.compressor import Compressor
    from smec_st.data import Collection
    from smec_st.evaluation import Row


@click.command()
@click.argument("compressor", type=FOLDER)
@collection_options
@click.option("--split", default="test", show_default=True, help="Judgements to score against.")
@click.option("--json", "json_file", type=FOLDER, help="Also write the rows to this JSON file.")
def evaluate(
    compressor: Path,
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    split: str,
    json_file: Path | None,
) -> None:
    """Score a COMPRESSOR at each of its sizes, next to the original vectors, truncation and PCA."""
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
    """Call :func:`~smec_st.evaluation.scoring.score_compressor`, which is imported late because it loads torch."""
    from smec_st.evaluation.scoring import score_compressor

    return score_compressor(compressor, collection, split)
