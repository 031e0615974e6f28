"""From a few texts to an ordinary model with short vectors. No labels needed.

python examples/quickstart.py
python examples/quickstart.py --model path/or/id --dims 96,48
"""

import argparse
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from smec_st import Compressor

TOPICS = {
    "files": ["delete a directory tree", "join two paths", "copy a file", "list a folder", "rename a file"],
    "text": ["split a line at commas", "replace a word", "match a pattern", "trim blanks", "count letters"],
    "time": ["measure how long it takes", "parse a date", "sleep a second", "convert a time zone", "format a date"],
    "network": ["open a socket", "fetch a web page", "send a mail", "resolve a host name", "serve a folder"],
}
TEXTS = [
    f"How to {task} in {place}?" for tasks in TOPICS.values() for task in tasks for place in ("Python", "a shell")
]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--dims", default="96,48")
    parser.add_argument("--steps", type=int, default=100, help="training steps; more than enough for a few texts")
    parser.add_argument("--out", type=Path, default=Path("quickstart-model"))
    options = parser.parse_args(arguments)
    dims = tuple(int(dim) for dim in options.dims.split(","))

    model = SentenceTransformer(options.model)
    compressor = Compressor.fit(TEXTS, dims=dims, model=model, steps=options.steps)
    compressor.export(model, options.out)

    small = SentenceTransformer(str(options.out), truncate_dim=dims[-1])
    index = small.encode(TEXTS, normalize_embeddings=True)
    question = small.encode_query("how do I remove a folder", normalize_embeddings=True)
    best = np.argsort(-(index @ question))[:3]
    print(f"{index.shape[1]} numbers per text instead of {compressor.width}. Nearest to the question:")
    for row in best:
        print(f"  {TEXTS[row]}")


if __name__ == "__main__":
    main()
