"""``smec-st evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from smec_st.cli.options import FOLDER, SIMILARITY, collection_options, print_similarity, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@collection_options
@SIMILARITY
@click.option("--split", default="test", show_default=True, help="Judgements to score against.")
@click.option("--json", "json_file", type=FOLDER, help="Also write the rows to this JSON file.")
def evaluate(
    compressor: Path,
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    similarity: str | None,
    codes: str | None,
    strict: bool,
    split: str,
    json_file: Path | None,
) -> None:
    """Score a COMPRESSOR at each of its sizes, next to the original vectors, truncation and PCA."""
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.compressor.scoring import score_compressor
        from smec_st.data import load_collection
        from smec_st.evaluation.report import print_rows, write_json

        loaded = Compressor.load(compressor)
        collection = load_collection(data, vectors, model, task, similarity=similarity, codes=codes, strict=strict)
    rows = score_compressor(loaded, collection, split)
    if json_file is not None:
        write_json(rows, json_file)
    print_rows(rows, f"{collection.name} ({split})")
    print_similarity(collection)
