"""``smec-st search``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from smec_st.cli.options import CODES, FOLDER, load_table, thinking


@click.command()
@click.argument("uri")
@click.option("--queries", type=FOLDER, help="Vectors, in any format.")
@CODES
@click.option("--text", "texts", multiple=True, help="A query as text; may be repeated. Requires --model.")
@click.option("--model", help="Sentence-transformers model that embeds --text; the one that embedded the documents.")
@click.option("--k", default=10, show_default=True, help="Number of results per query.")
@click.option("--where", help='Filter, as JSON: {"lang": "en", "year": {"$gte": 2020}}.')
@click.option("--compressor", type=FOLDER, help="Required only if a Milvus database holds several indexes.")
@click.option("--bridge", type=FOLDER, help="Queries are a new model's: map them by this bridge (`smec-st bridge`).")
@click.option("--new-index", metavar="URI", help="With --bridge: documents that the new model has embedded already.")
@click.option("--json", "json_file", type=FOLDER, help="Write results to this JSON file instead of printing them.")
def search(
    uri: str,
    queries: Path | None,
    codes: str | None,
    texts: tuple[str, ...],
    model: str | None,
    k: int,
    where: str | None,
    compressor: Path | None,
    bridge: Path | None,
    new_index: str | None,
    json_file: Path | None,
) -> None:
    """Search the index at URI, and print query, rank, id and cosine separated by tabs.

    A query is named by its id in the file of --queries, or else by its number from 0.
    """
    with thinking("opening"):
        from smec_st.compressor import Bridge, Compressor
        from smec_st.data import DataError
        from smec_st.data.blackbox import backbone_of_files
        from smec_st.data.rows import plain_ids
        from smec_st.data.source import Tables
        from smec_st.data.sources.batch import sidecar_record
        from smec_st.search import BridgedIndex, FunnelIndex, bridged_queries

        if (queries is None) == (not texts):
            raise DataError("give either --queries or --text.")
        if texts and model is None:
            raise DataError("--text needs --model.")
        if bridge is not None and queries is None:
            raise DataError("--bridge maps vectors of the new model: give --queries.")
        if new_index is not None and bridge is None:
            raise DataError("--new-index is searched beside the index of an old model: give --bridge.")
        condition = parse_where(where)
        source = None if queries is None else load_table(queries, "queries", codes)
        inputs: Any = list(texts) if source is None else source.array
        loaded = None if compressor is None else Compressor.load(compressor)
        index = FunnelIndex.open(uri, loaded, model=model)
    with index:
        crossing = None if bridge is None else Bridge.load(bridge)
        if crossing is not None:
            assert queries is not None
            crossing.check({**backbone_of_files(Tables(queries, codes)), **sidecar_record(queries)}, str(queries))
        elif source is not None:
            index.check(source, index.settings.sizes)
        if crossing is None:
            hits = index.search(inputs, k, where=condition)
        elif new_index is None:
            hits = index.search(bridged_queries(index, crossing, inputs), k, where=condition)
        else:
            with FunnelIndex.open(new_index) as new:
                hits = BridgedIndex(index, new, crossing).search(inputs, k, where=condition)
    results = [
        [(name, round(float(score), 6)) for name, score in zip(ids, scores, strict=True) if score > float("-inf")]
        for ids, scores in zip(hits.ids.tolist(), hits.scores.tolist(), strict=True)
    ]
    names: Sequence[Any] = range(len(results)) if source is None or source.ids is None else plain_ids(source.ids)
    if json_file is not None:
        rows = [
            [{"query": query, "id": name, "score": score} for name, score in row]
            for query, row in zip(names, results, strict=True)
        ]
        json_file.write_text(json.dumps(rows) + "\n", encoding="utf-8")
        return
    for query, row in zip(names, results, strict=True):
        for rank, (name, score) in enumerate(row, start=1):
            click.echo(f"{query}\t{rank}\t{name}\t{score:.6f}")


def parse_where(text: str | None) -> dict[str, Any] | None:
    """Parse a filter given as JSON."""
    from smec_st.system.errors import DataError, parse_json, storable

    if text is None:
        return None
    where = parse_json(text, "--where")
    storable(json.dumps(where, ensure_ascii=False), "--where")
    if not isinstance(where, dict):
        raise DataError(f"--where takes a JSON object, got {text}")
    return where
