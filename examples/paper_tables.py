"""The tables of the SMEC paper on your own collections: methods by size, ablation, gradients, importance.

    python examples/paper_tables.py --data scifact --vectors scifact.safetensors --out paper

The methods that the paper compares (Search-Adaptor, Matryoshka-Adaptor with and without labels, SMEC as published) and
its analyses run on the same vectors, judgements and held-out queries. Finished fits are kept: the same command
continues after a stop. The paper's own vectors (LLM2Vec, OpenAI) are not public, so its figures cannot be repeated as
they are.
"""

import argparse
from pathlib import Path

from smec_st.cli import run

METHODS = "truncate,pca,search-adaptor,matryoshka-adaptor-unsupervised,matryoshka-adaptor,smec-published,smec"
ANALYSES = ("importance", "gradients", "convergence", "ablation")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--dims", default="192,96,48,24")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--analyses", default=",".join(ANALYSES), help="names with commas between; empty for none")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=Path("paper"))
    options = parser.parse_args(arguments)

    collection = ["--data", options.data, "--vectors", options.vectors]
    compare = ["compare", *collection, "--dims", options.dims, "--methods", options.methods, "--seeds", options.seeds]
    codes = [run([*compare, "--out", str(options.out / "methods")])]
    for name in filter(None, options.analyses.split(",")):
        codes.append(run(["analyze", name, *collection, "--out", str(options.out / "analysis")]))
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
