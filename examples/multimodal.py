"""Text and images in one space, as CLIP gives them: captions look for their images, with one map for both sides.

``captions.jsonl`` holds ``{"image": "path.jpg", "text": "a caption"}`` per line; an image may come several times. With
``--vectors`` nothing is embedded: a safetensors file gives ``images`` (one row per different image, in order of first
mention) and ``texts`` (one row per line).

    python examples/multimodal.py captions.jsonl --model sentence-transformers/clip-ViT-B-32
"""

import argparse
import json
from pathlib import Path

import numpy as np

from smec_st import Compressor, load_vectors


def embed(model_id, folder, images, texts):
    """Vectors of both sides from a CLIP-like model."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_id)
    paths = [str(folder / image) for image in images]
    return model.encode(paths, normalize_embeddings=True), model.encode(texts, normalize_embeddings=True)


def recall_at_1(texts, images, wanted):
    """Share of captions whose nearest image is their own."""
    return float(((texts @ images.T).argmax(axis=1) == wanted).mean())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--dims", default="128,64")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("multimodal-compressor"))
    options = parser.parse_args(arguments)
    dims = tuple(int(dim) for dim in options.dims.split(","))

    lines = [json.loads(line) for line in options.captions.read_text(encoding="utf-8").splitlines()]
    images = list(dict.fromkeys(line["image"] for line in lines))
    place = {image: row for row, image in enumerate(images)}
    wanted = np.array([place[line["image"]] for line in lines])
    if options.vectors:
        image_vectors, text_vectors = (load_vectors(options.vectors, side) for side in ("images", "texts"))
    else:
        image_vectors, text_vectors = embed(
            options.model, options.captions.parent, images, [line["text"] for line in lines]
        )
    held_out = np.arange(len(lines)) % 5 == 4  # a fifth of the captions is kept for the score
    pairs = np.stack([np.flatnonzero(~held_out), wanted[~held_out]], axis=1)
    compressor = Compressor.fit(
        image_vectors,
        text_vectors,
        pairs,
        dims,
        model=options.model,
        steps=options.steps,
    )
    asked, answer = text_vectors[held_out], wanted[held_out]
    print(f"recall@1 at {image_vectors.shape[1]}: {recall_at_1(asked, image_vectors, answer):.3f}")
    for dim in dims:
        small = recall_at_1(compressor.transform(asked, dim), compressor.transform(image_vectors, dim), answer)
        print(f"recall@1 at {dim}: {small:.3f}")
    compressor.save(options.out)


if __name__ == "__main__":
    main()
