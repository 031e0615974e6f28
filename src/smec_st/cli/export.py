"""``smec-st export``."""

from __future__ import annotations

from pathlib import Path

import click

from smec_st.cli.options import FOLDER, refuse_existing, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@click.option("--model", required=True, help="The backbone whose vectors the compressor was fitted on.")
@click.option("--out", type=FOLDER, required=True, help="New folder for the model.")
@click.option("--dim", type=int, help="Export only this size; all nested sizes by default.")
@click.option("--onnx", is_flag=True, help="Also write onnx/model.onnx: backbone and compressor in one graph.")
def export(compressor: Path, model: str, out: Path, dim: int | None, onnx: bool) -> None:
    """Save backbone and COMPRESSOR as one ordinary model that loads without this package."""
    refuse_existing(out)
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.data.embedding import load_model

        loaded = Compressor.load(compressor)
        backbone = load_model(model)
    loaded.export(backbone, out, dim, onnx=onnx)
    sizes = dim or "/".join(map(str, loaded.nested_dims))
    click.echo(f'saved to {out}: SentenceTransformer("{out}") gives {sizes} dimensions')
