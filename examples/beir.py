"""Text in BEIR layout: fit on the training judgements, score on the test ones, keep compressor and report.

python examples/beir.py --data scifact --vectors scifact.safetensors
python examples/beir.py --data BeIR/scifact --model sentence-transformers/all-MiniLM-L6-v2
"""

import argparse
from pathlib import Path

from smec_st import Compressor, load_collection
from smec_st.evaluation.report import print_rows, write_report
from smec_st.evaluation.sweep import sweep
from smec_st.evaluation.untrained import original, pca, truncate


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder, or id on the Hugging Face Hub")
    parser.add_argument("--vectors", help="safetensors file with the tensors corpus and queries")
    parser.add_argument("--model", help="model that embeds the texts, where there is no file")
    parser.add_argument("--dims", default="192,96,48,24")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("beir-compressor"))
    options = parser.parse_args(arguments)
    dims = tuple(int(dim) for dim in options.dims.split(","))

    data = load_collection(options.data, options.vectors, options.model)
    compressor = Compressor.fit(
        data.corpus,
        data.queries,
        data.judged("train"),
        dims,
        dev_qrels=data.qrels.get("dev"),  # held-out queries choose what to train
        own_document=data.own_document,
        model=options.model,
        steps=options.steps,
        progress=True,
    )
    methods = {"original": original, "truncate": truncate, "pca": pca(data.corpus), "smec": compressor.transform}
    rows = sweep(data.corpus, data.queries, data.judged("test"), methods, dims, own_document=data.own_document)
    print_rows(rows, f"{data.name} (test)")
    compressor.save(options.out)
    write_report(rows, options.out, data.name)


if __name__ == "__main__":
    main()
