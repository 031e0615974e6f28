"""Share on the Hugging Face Hub: the compressor alone, a few MB, and the whole model; then load both again.

hf auth login
python examples/share.py my-compressor me/my-model-small --model sentence-transformers/all-MiniLM-L6-v2
"""

import argparse
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from smec_st import Compressor
from smec_st.hub.evidence import Evidence

TEXT = ["how do I delete a directory tree"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compressor", type=Path, help="folder written by `smec-st fit` or Compressor.save")
    parser.add_argument("repo_id")
    parser.add_argument("--model", required=True, help="the backbone")
    parser.add_argument("--public", action="store_true", help="private otherwise")
    options = parser.parse_args(arguments)

    compressor = Compressor.load(options.compressor)
    backbone = SentenceTransformer(options.model)
    figures = Evidence.load(options.compressor)  # the report of the fit, for the model card
    push = {"private": not options.public, "evidence": figures, "license": "apache-2.0"}

    print(compressor.push_to_hub(f"{options.repo_id}-head", **push))
    print(compressor.push_to_hub(options.repo_id, backbone, per_size="branches", **push))

    attached = Compressor.from_pretrained(f"{options.repo_id}-head").attach(backbone)
    whole = SentenceTransformer(options.repo_id)  # as anyone would, without smec-st
    smallest = SentenceTransformer(options.repo_id, revision=f"dim-{compressor.dims[-1]}")
    print("both are the same model:", np.allclose(attached.encode(TEXT), whole.encode(TEXT), atol=1e-5))
    print(f"revision dim-{compressor.dims[-1]} gives {smallest.encode(TEXT).shape[1]} numbers of length 1")


if __name__ == "__main__":
    main()
