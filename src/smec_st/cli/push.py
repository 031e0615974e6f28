"""``smec-st push``."""

from __future__ import annotations

from pathlib import Path

import click

from smec_st.cli.options import FOLDER, thinking


@click.command()
@click.argument("compressor", type=FOLDER)
@click.argument("repo_id")
@click.option("--model", help="The backbone, to publish a whole model; without it only the compressor is published.")
@click.option("--dim", type=int, help="Publish only this size; all sizes by default.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--overwrite", is_flag=True, help="Write to a repository that is not empty.")
@click.option("--revision", help="Branch to publish on; main by default.")
@click.option("--per-size", type=click.Choice(["branches", "tags"]), help="Also publish each size as revision dim-N.")
@click.option("--license", help="Licence, as the Hub abbreviates it, such as apache-2.0.")
@click.option("--message", help="Commit message.")
def push(
    compressor: Path,
    repo_id: str,
    model: str | None,
    dim: int | None,
    private: bool,
    overwrite: bool,
    revision: str | None,
    per_size: str | None,
    license: str | None,
    message: str | None,
) -> None:
    """Publish COMPRESSOR as REPO_ID on the Hugging Face Hub, with a model card made from its report."""
    with thinking("reading"):
        from smec_st.compressor import Compressor
        from smec_st.hub.evidence import Evidence

        loaded = Compressor.load(compressor)
        evidence = Evidence.load(compressor)
    with thinking("publishing"):
        address = loaded.push_to_hub(
            repo_id,
            model,
            dim=dim,
            private=private or None,
            overwrite=overwrite,
            revision=revision,
            per_size=per_size,
            message=message,
            evidence=evidence,
            license=license,
        )
    how = "Compressor.from_pretrained" if model is None else "SentenceTransformer"
    click.echo(f'published: {address}\nload it with {how}("{repo_id}")')
