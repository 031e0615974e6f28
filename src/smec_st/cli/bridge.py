"""``smec-st bridge``."""

from __future__ import annotations

from pathlib import Path

import click

from smec_st.cli.allocator import keep_freed_memory
from smec_st.cli.options import FOLDER, collection_options, refuse_existing, thinking


@click.command()
@collection_options
@click.option("--compressor", type=FOLDER, help="What the stored vectors were compressed with; none if they were not.")
@click.option("--new-vectors", type=FOLDER, help="The same texts by the new model: a file as for --vectors.")
@click.option("--new-model", help="Sentence-transformers model that embeds the texts anew.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of the store's documents that this sample holds. The other "
    "held-out queries are measured without their relevant documents in it.",
)
@click.option(
    "--least", type=float, default=0.9, show_default=True, help="Part of the old model's nDCG@10 that must be kept."
)
@click.option(
    "--no-labels", is_flag=True, help="Ignore judgements; the old model's ten nearest documents are relevant."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--out", type=FOLDER, required=True, help="New folder for the bridge.")
def bridge(
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    codes: str | None,
    strict: bool,
    compressor: Path | None,
    new_vectors: Path | None,
    new_model: str | None,
    share: float,
    least: float,
    no_labels: bool,
    seed: int,
    out: Path,
) -> None:
    """Map queries of a new model into the space of documents that an old model embedded.

    The collection is a sample that both models have embedded: by the old one (--vectors or --model) and by the new one
    (--new-vectors or --new-model). Queries of all splits but `test` are learned from. What the bridge keeps is
    measured on held-out queries, and nothing is written if it keeps too little.
    """
    keep_freed_memory()
    refuse_existing(out)
    with thinking("reading"):
        import numpy as np

        from smec_st.compressor import Bridge, Compressor
        from smec_st.data import DataError, Qrels, load_collection
        from smec_st.evaluation.choice import Decision

        if new_vectors is None and new_model is None:
            raise DataError("give the new model's vectors: --new-vectors or --new-model.")
        loaded = None if compressor is None else Compressor.load(compressor)
        one = load_collection(data, vectors, model, task, codes=codes, strict=strict)
        other = load_collection(data, new_vectors, new_model, task, codes=codes, strict=strict)
    known = [qrels for split, qrels in one.qrels.items() if split != "test"]
    judged = Qrels.joined(known) if known else None
    aside = one.qrels["test"].query_rows if "test" in one.qrels else np.empty(0, dtype=np.int64)
    rows = np.setdiff1d(np.arange(len(one.queries)), aside)
    if judged is not None:
        judged = Qrels(np.searchsorted(rows, judged.queries), judged.documents, judged.grades)
    made = Bridge.fit(
        one.corpus,
        one.queries[rows],
        other.corpus,
        other.queries[rows],
        None if no_labels else judged,
        compressor=loaded,
        share=share,
        least=least,
        own_document=one.own_document[rows],
        old=one.backbone,
        new=other.backbone,
        seed=seed,
    )
    made.save(out)
    kept = made.info["kept"]
    click.echo(str(Decision(**made.info["decision"])))
    click.echo(f"{kept['metric']} of {kept['queries']} held-out queries; the new model alone: {kept['new']:.3f}")
    for dim in made.dims:
        click.echo(f"{dim:>6} dims: {kept['bridged'][str(dim)]:.3f}, with the old model {kept['old'][str(dim)]:.3f}")
    click.echo(f"{made}\nsaved to {out}")
