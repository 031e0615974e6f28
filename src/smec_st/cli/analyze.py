"""``smec-st analyze``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from smec_st.cli.allocator import keep_freed_memory
from smec_st.cli.options import FOLDER, collection_options, thinking, whole_numbers, whole_seeds


@click.command()
@click.argument("what", type=click.Choice(["importance", "gradients", "convergence", "ablation"]))
@collection_options
@click.option("--dims", help="Sizes, for instance 192,96; gradients has no choice of sizes.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the analysis's JSON file and plot.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Random seeds; the analysis is repeated with each.")
def analyze(
    what: str,
    data: Path,
    vectors: Path | None,
    model: str | None,
    task: str | None,
    codes: str | None,
    strict: bool,
    dims: str | None,
    out: Path,
    seeds: str,
) -> None:
    """Repeat one of the analyses of the SMEC paper on a collection.

    importance: the share of important dimensions that ADS, truncation and PCA keep; gradients: size and variance of
    the gradients by block of dimensions, under MRL and SMRL; convergence: quality by epoch; ablation: quality without
    SMRL, ADS or S-XBM.
    """
    keep_freed_memory()
    from smec_st.data import DataError

    settings: dict[str, Any] = {"seeds": whole_seeds(seeds)}
    if dims is not None:
        if what == "gradients":
            raise DataError("gradients are measured at a half and a quarter of the width; leave --dims out.")
        settings["dims"] = whole_numbers(dims, "--dims")
    with thinking("reading"):
        from smec_st.data import load_collection

        analysis = importlib.import_module(f"smec_st.research.analysis.{what}")
        collection = load_collection(data, vectors, model, task, codes=codes, strict=strict)
    out.mkdir(parents=True, exist_ok=True)
    with thinking(what):
        analysis.run(collection, out, **settings)
    click.echo(f"saved to {out}")
