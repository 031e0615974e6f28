"""``smec-st verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from smec_st.cli.options import FOLDER, thinking

FAILED = 1


@click.command()
@click.argument("model")
@click.option("--json", "json_file", type=FOLDER, help="Also write the checks to this JSON file.")
def verify(model: str, json_file: Path | None) -> None:
    """Load MODEL (a folder or an id on the Hub) the ways that servers do, and compare the vectors.

    The exit code is 1 if they differ.
    """
    with thinking("loading"):
        from smec_st.hub.verify import verify as check
        from smec_st.system.files import write_json

        checks = check(model)
    if json_file is not None:
        write_json(json_file, [asdict(one) for one in checks], indent=1)
    for one in checks:
        mark = "note" if one.is_note else "ok" if one.is_good else "WRONG"
        figures = [
            "" if one.difference is None else f"difference {one.difference:.1e}",
            "" if one.length is None else f"length {one.length:.4f}",
        ]
        details = ", ".join(part for part in (*figures, one.problem or "") if part)
        click.echo(f"{mark:5}  {one.way}, {one.dim} dims: {details}")
    tried = dict.fromkeys(one.way for one in checks if not one.is_note)
    click.echo(f"tried: {'; '.join(tried)}")
    if not all(one.is_good for one in checks):
        click.get_current_context().exit(FAILED)
