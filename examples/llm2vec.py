"""A decoder language model as a small-vector text encoder, published as an ordinary model.

    python examples/llm2vec.py --model Qwen/Qwen2-7B-Instruct --adapter path/or/id/of/lora --data scifact \\
        --dims 1024,512,256,128 --dtype bfloat16 --push me/llm2vec-smec-256

Attention is made bidirectional by `is_causal: false`, tokens are averaged, LoRA adapters are merged (or, with
`--keep-adapter`, published as a reference to the base model: the repository is then a few MB and needs `peft`). A
decoder needs LLM2Vec's adapters, or training of its own, to be a good encoder: bidirectional attention alone is not
enough.

Memory and time for 7 billion parameters, by arithmetic, not measured: the weights take 15 GB in bfloat16 and the
activations of 8 texts of 512 tokens about 2 GB, so a GPU of 24 GB does. A text of 256 tokens costs 2 x 7.6e9 x 256 =
3.9 TFLOP: at 40 % of 300 TFLOP/s about 30 texts a second, so 5,000 documents take three minutes. Fitting the map on
the 3,584-d vectors needs no GPU: 5,000 x 3,584 float32 are 72 MB.
"""

import argparse
from pathlib import Path

import numpy as np

from smec_st import Compressor, load_collection
from smec_st.data.embedding import embed
from smec_st.data.jsonl import read_jsonl
from smec_st.evaluation.report import print_rows
from smec_st.evaluation.sweep import sweep
from smec_st.evaluation.untrained import original, pca, truncate
from smec_st.hub.decoder import decoder_backbone

QUERY = "Given a question, retrieve passages that answer it: "


def texts_of(folder, side):
    """Texts of a BEIR folder, rows in file order."""
    records = read_jsonl(Path(folder) / f"{side}.jsonl")
    return [f"{record.get('title') or ''} {record['text']}".strip() for record in records]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", action="append", default=[], help="LoRA adapter; repeat, in order")
    parser.add_argument("--keep-adapter", action="store_true", help="publish the adapter, not the merged weights")
    parser.add_argument("--data", required=True, help="folder in BEIR layout")
    parser.add_argument("--dims", default="1024,512,256,128")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=Path("llm2vec-smec"))
    parser.add_argument("--push", help="owner/name on the Hub")
    options = parser.parse_args(arguments)
    dims = tuple(int(dim) for dim in options.dims.split(","))

    backbone = decoder_backbone(
        options.model,
        options.adapter,
        merge=not options.keep_adapter,
        max_seq_length=options.max_seq_length,
        dtype=options.dtype,
        prompts={"query": QUERY, "document": ""},
        device=options.device,
    )
    vectors = Path(f"{options.out}-vectors")  # embedding is what takes long: kept, so that a second fit is quick
    vectors.mkdir(exist_ok=True)
    for side, kind in (("corpus", "document"), ("queries", "query")):
        if not (vectors / f"{side}.npy").exists():
            np.save(vectors / f"{side}.npy", embed(backbone, texts_of(options.data, side), kind, progress=True))
    data = load_collection(options.data, vectors)
    compressor = Compressor.fit(
        data.corpus,
        data.queries,
        data.judged("train"),
        dims,
        dev_qrels=data.qrels.get("dev"),
        model=backbone,
        steps=options.steps,
    )
    methods = {"original": original, "truncate": truncate, "pca": pca(data.corpus), "smec": compressor.transform}
    print_rows(sweep(data.corpus, data.queries, data.judged("test"), methods, dims), f"{data.name} (test)")
    compressor.export(backbone, options.out)
    if options.push:
        print(compressor.push_to_hub(options.push, backbone))


if __name__ == "__main__":
    main()
