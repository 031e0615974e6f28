"""Put methods that were measured again into a recorded comparison, and write its report, tables and plots anew.

    smec-st compare --data ... --methods smec,mrl-principal,pca,truncate --seeds 0,1,2 --out again
    python benchmarks/compare_again.py benchmarks/results/compare again

What a newer run holds takes the place of what is recorded of the same method on the same collection. Differences of
all other rows are taken to the newer means; their intervals need each query's scores, which only a run from the start
has, and are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smec_st.evaluation.report import Row
from smec_st.evaluation.statistics import lossless
from smec_st.research.compare.comparison import Comparison, write_comparison
from smec_st.research.compare.proxy import correlations, recommendations

METRICS = ("mrr@10", "ndcg@10", "overlap@10", "recall@100", "topk_distance", "pair_distance", "document_overlap@10")
PLACE = ("collection", "method", "dim", "bytes_per_vector")


def read_rows(folder: Path) -> list[Row]:
    """The rows of a comparison."""
    return [
        Row(
            **{name: row[name] for name in PLACE},
            metrics={name: row[name] for name in METRICS if name in row},
            extra={name: value for name, value in row.items() if name not in (*PLACE, *METRICS)},
        )
        for row in json.loads((folder / "report.json").read_text())
    ]


def merged(before: list[Row], again: list[Row], reference: str) -> list[Row]:
    """All rows, in the order of the recorded ones."""
    newer = {(row.collection, row.method, row.bytes_per_vector): row for row in again}
    means = {
        (row.collection, row.bytes_per_vector): row.metrics["ndcg@10"] for row in again if row.method == reference
    }
    rows = []
    for row in before:
        place = row.collection, row.method, row.bytes_per_vector
        mean = means.get((row.collection, row.bytes_per_vector))
        if place in newer:
            row = newer[place]
        elif mean is not None and "difference" in row.extra:
            row.extra["difference"] = row.metrics["ndcg@10"] - mean
            for name in ("low", "high", "p"):
                row.extra.pop(name, None)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path)
    parser.add_argument("again", type=Path)
    options = parser.parse_args()
    record, newer = (json.loads((each / "run.json").read_text()) for each in (options.recorded, options.again))
    rows = merged(read_rows(options.recorded), read_rows(options.again), record["reference"])
    comparison = Comparison(rows, lossless(rows), correlations(rows), recommendations(rows), [])
    record["again"] = {name: newer[name] for name in ("methods", "seeds", "versions")}
    record["again"]["collections"] = sorted(newer["collections"])
    write_comparison(comparison, record, options.recorded)


if __name__ == "__main__":
    main()
