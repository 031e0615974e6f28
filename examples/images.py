"""Images by class: a query image should find those of its own class.

The folder holds ``train/CLASS/NAME.jpg`` and ``test/CLASS/NAME.jpg``, embedded by an image model; or ``images.jsonl``
with a file of vectors.

    python examples/images.py photos --model sentence-transformers/clip-ViT-B-32
    python examples/images.py clothes --vectors clothes.safetensors --dims 256,64
"""

import argparse
from pathlib import Path

from smec_st import Compressor, load_collection
from smec_st.evaluation.report import print_rows
from smec_st.evaluation.sweep import sweep
from smec_st.evaluation.untrained import original, pca, truncate


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--dims", default="256,128,64,32")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("image-compressor"))
    options = parser.parse_args(arguments)
    dims = tuple(int(dim) for dim in options.dims.split(","))

    data = load_collection(options.folder, options.vectors, options.model)
    compressor = Compressor.fit(
        data.corpus,
        data.queries,
        data.judged("train"),
        dims,
        dev_qrels=data.qrels.get("dev"),
        own_document=data.own_document,  # a training image must not count as an answer to itself
        model=options.model,
        steps=options.steps,
    )
    methods = {"original": original, "truncate": truncate, "pca": pca(data.corpus), "smec": compressor.transform}
    split = "test" if "test" in data.qrels else "train"
    print_rows(
        sweep(data.corpus, data.queries, data.judged(split), methods, dims, own_document=data.own_document),
        f"{data.name} ({split})",
    )
    compressor.save(options.out)


if __name__ == "__main__":
    main()
