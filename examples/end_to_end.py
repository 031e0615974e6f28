"""Fine-tune the backbone and all sizes together, on pairs of texts.

`pairs.jsonl` holds `{"anchor": "a question", "positive": "its answer"}` per line; more columns are negatives.

    python examples/end_to_end.py pairs.jsonl --model sentence-transformers/all-MiniLM-L6-v2 --dims 96,48

On a frozen backbone a fit takes seconds; this takes the time of a fine-tuning, and needs enough pairs to be worth it.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from smec_st import SequentialTrainingArguments
from smec_st.compressor.text import text_trainer, trained_compressor
from smec_st.data.jsonl import read_jsonl


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--dims", default="192,96,48")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--frozen", action="store_true", help="leave the backbone as it is")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("end-to-end-model"))
    options = parser.parse_args(arguments)

    backbone = SentenceTransformer(options.model, device="cpu" if options.cpu else None)
    settings = SequentialTrainingArguments(
        output_dir=f"{options.out}-checkpoints",
        dims=[int(dim) for dim in options.dims.split(",")],
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        save_strategy="no",
        report_to="none",
        use_cpu=options.cpu,
    )
    pairs = Dataset.from_list(list(read_jsonl(options.pairs)))
    trainer = text_trainer(backbone, settings, pairs, train_backbone=not options.frozen)
    trainer.train()
    compressor = trained_compressor(trainer, backbone)
    compressor.export(backbone, options.out)  # the backbone as it is now, and the map
    print(compressor)


if __name__ == "__main__":
    main()
