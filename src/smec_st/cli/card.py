"""``smec-st card``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from smec_st.cli.options import FOLDER, SIMILARITY, collection_options, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("repo_id")
@collection_options
@SIMILARITY
@click.option("--split", default="test", show_default=True, help="Judgements to score against.")
@click.option("--dataset", help="Id of the collection on the Hub.")
@click.option("--data-license", help="Licence of the training data, in words.")
@click.option("--source", help="Where the training data comes from.")
@click.option("--license", help="Licence of the compressor, as the Hub abbreviates it, such as apache-2.0.")
def card(
    compressor: Path,
    repo_id: str,
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    similarity: str | None,
    codes: str | None,
    strict: bool,
    split: str,
    dataset: str | None,
    data_license: str | None,
    source: str | None,
    license: str | None,
) -> None:
    """Measure COMPRESSOR, and write a model card for REPO_ID into its folder; `push` publishes those figures."""
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.compressor.scoring import measure
        from smec_st.data import DataError, load_collection
        from smec_st.hub.card import write_card
        from smec_st.hub.evidence import FILE

        if (compressor / "README.md").exists() and not (compressor / FILE).exists():
            raise DataError(f"{compressor / 'README.md'} was not written by this command; move it away first.")
        loaded = Compressor.load(compressor)
        collection = load_collection(data, vectors, model, task, similarity=similarity, codes=codes, strict=strict)
    with thinking("measuring"):
        evidence = dataclasses.replace(
            measure(loaded, collection, split), dataset=dataset, data_license=data_license, source=source
        )
    evidence.save(compressor)
    write_card(loaded, compressor, repo_id, head_only=True, evidence=evidence, license=license)
    click.echo(f"wrote README.md, quality.png and evidence.json into {compressor}")
