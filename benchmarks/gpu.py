"""What a GPU is good for here. Written for one card; at `--small` it runs on a CPU, which only shows that it works.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json
    python benchmarks/gpu.py --small --json gpu-small.json

- fit: `Compressor.fit` on a memory map of 1,000,000 documents of 4,096 numbers and 100,000 queries, without labels and
  with one judged document each;
- step: one training step, against the time that its matrix products alone take at the rate of one large product;
- trainer: a Qwen2-shaped backbone of 1.5 billion random weights with LoRA, through the trainer and in a bare loop over
  the same loss: tokens per second, and memory;
- nccl: one rank of a process group (gloo without a GPU): gathered rows and their gradients are those that went in;
- compile: the step with the model under `torch.compile`, beside the step without.

Each part is recorded as it ends, with the device. A part that fails is recorded with the reason, and the others go on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall a busy machine

import argparse
import dataclasses
import importlib.metadata
import json
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from record import PACKAGES
from sentence_transformers import SentenceTransformer
from torch.utils.flop_counter import FlopCounterMode

from smec_st import (
    Compressor,
    EmbeddingInput,
    Qrels,
    SelectableCrossBatchMemory,
    SequentialTrainingArguments,
    SMECLoss,
    VectorTable,
)
from smec_st.losses.ranks import gather_rows
from smec_st.losses.relevance import Relevance
from smec_st.modules import ResidualAdapter
from smec_st.stages import Stage
from smec_st.system.files import write_text

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclasses.dataclass(frozen=True)
class Sizes:
    documents: int = 1_000_000
    queries: int = 100_000
    width: int = 4096
    dims: tuple[int, ...] = (1024, 512, 256, 128)
    batch: int = 128
    memory: int = 8192
    repeats: int = 50
    product: int = 8192
    hidden: int = (
        1536  # of the backbone, with layers, heads, key-value heads, inner width and vocabulary of Qwen2 1.5B
    )
    layers: int = 28
    heads: int = 12
    key_value_heads: int = 2
    inner: int = 8960
    vocabulary: int = 151_936
    texts: int = 512
    tokens: int = 128
    text_batch: int = 16
    text_steps: int = 20


SMALL = Sizes(
    documents=2000, queries=200, width=64, dims=(16, 8), batch=32, memory=512, repeats=3, product=256, hidden=32,
    layers=2, heads=4, key_value_heads=2, inner=64, vocabulary=300, texts=32, tokens=12, text_batch=8, text_steps=2,
)  # fmt: skip


def timed(step: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a step, after three that warm up."""
    seconds = []
    for number in range(repeats + 3):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def memory_bytes() -> int:
    """Most memory so far: of the card, or of the process."""
    if DEVICE.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- fit and step -----------------------------------------------------------------------------------------------------


def fit(sizes: Sizes) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus = np.lib.format.open_memmap(
            Path(folder) / "corpus.npy", "w+", np.float16, (sizes.documents, sizes.width)
        )
        for start in range(0, sizes.documents, 10_000):
            part = corpus[start : start + 10_000]
            part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        about = rng.integers(0, sizes.documents, sizes.queries)
        queries = corpus[about] + rng.standard_normal((sizes.queries, sizes.width), dtype=np.float32)
        pairs = np.stack([np.arange(sizes.queries), about], axis=1)
        quick = {"steps": 3, "adapt_steps": 3} if sizes == SMALL else {}
        found: dict[str, Any] = {}
        for name, qrels in (("no labels", None), ("labels", pairs)):
            began = time.perf_counter()
            made = Compressor.fit(corpus, queries, qrels, sizes.dims, **quick)
            found[name] = {"seconds": time.perf_counter() - began, "stages": made.info["stages"]}
        return found


def one_step(sizes: Sizes, compiled: bool) -> Callable[[], None]:
    """Forward, backward and update of the nested loss over a batch and its memory."""
    generator = torch.Generator().manual_seed(0)
    corpus = torch.randn(max(sizes.memory, 1000), sizes.width, generator=generator).numpy()
    queries = corpus[: sizes.batch] + torch.randn(sizes.batch, sizes.width, generator=generator).numpy()
    table, rows = VectorTable(corpus, queries), np.arange(sizes.batch)
    model = SentenceTransformer(modules=[EmbeddingInput(sizes.width)], device=str(DEVICE))
    model.append(ResidualAdapter(sizes.width, sizes.dims[0]).to(DEVICE))
    qrels = Qrels(rows, rows, np.ones(len(rows)))
    memory = SelectableCrossBatchMemory(sizes.width, sizes.memory)
    loss = SMECLoss(model, table, Relevance(qrels, table), memory).to(DEVICE)
    largest = sizes.dims[0]
    loss.begin_stage(
        Stage(index=0, order="grow", phase="compress", in_dim=sizes.width, out_dim=largest, sizes=sizes.dims[::-1])
    )
    ids = torch.from_numpy(np.stack([table.query_ids(rows), rows], axis=1))
    columns = [{"sentence_embedding": table[ids[:, side]].to(DEVICE)} for side in (0, 1)]
    labels = ids.to(DEVICE)
    optimizer = torch.optim.AdamW([each for each in loss.parameters() if each.requires_grad], lr=1e-3)
    if compiled:
        loss.model = torch.compile(model)

    def step() -> None:
        loss.begin_step(0, 0)
        optimizer.zero_grad()
        sum(loss(columns, labels).values()).backward()
        optimizer.step()

    return step


def step(sizes: Sizes) -> dict[str, Any]:
    run = one_step(sizes, compiled=False)
    run()
    with FlopCounterMode(display=False) as counter:
        run()
    flops = counter.get_total_flops()
    left, right = (torch.randn(sizes.product, sizes.product, device=DEVICE) for _ in range(2))
    rate = 2 * sizes.product**3 / timed(lambda: left @ right, sizes.repeats)
    seconds = timed(run, sizes.repeats)
    return {
        "seconds": seconds, "flops": flops, "flops_per_second_of_one_product": rate, "floor_seconds": flops / rate,
        "times_the_floor": seconds / (flops / rate), "memory_bytes": memory_bytes(),
    }  # fmt: skip


def compiled(sizes: Sizes) -> dict[str, Any]:
    return {name: timed(one_step(sizes, on), sizes.repeats) for name, on in (("off", False), ("on", True))}


# -- a backbone -------------------------------------------------------------------------------------------------------


def backbone(sizes: Sizes, folder: Path) -> SentenceTransformer:
    """A decoder of random weights as a text encoder, with LoRA adapters, the only part that trains."""
    from peft import LoraConfig
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Config, Qwen2Model, Qwen2Tokenizer

    from smec_st.hub.decoder import decoder_backbone

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["[PAD]", *letters])}
    special = {"unk_token": "[PAD]", "eos_token": "[PAD]", "pad_token": "[PAD]"}
    Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=sizes.tokens, **special).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_value_heads, intermediate_size=sizes.inner,
        max_position_embeddings=max(sizes.tokens, 64), pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        random = Qwen2Model(config)
    random.to(torch.bfloat16 if DEVICE.type == "cuda" else torch.float32).save_pretrained(folder)
    del random
    made = decoder_backbone(folder, max_seq_length=sizes.tokens, device=str(DEVICE))
    made.requires_grad_(False)
    made.add_adapter(LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    return made


def trainer(sizes: Sizes) -> dict[str, Any]:
    from smec_st.compressor.text import text_trainer

    rng = np.random.default_rng(0)
    texts = ["".join(chr(97 + letter) for letter in rng.integers(0, 26, sizes.tokens)) for _ in range(2 * sizes.texts)]
    data = Dataset.from_dict({"anchor": texts[: sizes.texts], "positive": texts[sizes.texts :]})
    counted = 2 * sizes.text_batch * sizes.tokens  # both columns of a step
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        model = backbone(sizes, Path(name) / "model")
        arguments = SequentialTrainingArguments(
            output_dir=f"{name}/run", dims=[sizes.hidden // 4], max_steps=sizes.text_steps, save_strategy="no",
            per_device_train_batch_size=sizes.text_batch, report_to="none", disable_tqdm=True,
            bf16=DEVICE.type == "cuda",
        )  # fmt: skip
        through = text_trainer(model, arguments, data, train_backbone=True, held_out_share=0.0)
        report = through.train()[0]
        found["trainer"] = {"tokens_per_second": report.steps * counted / report.seconds, "memory": memory_bytes()}
        found["parameters"] = sum(each.numel() for each in model.parameters())
        bare = SentenceTransformer(modules=list(model), device=str(DEVICE))
        for named, parameter in bare.named_parameters():
            parameter.requires_grad_("lora" in named)
        optimizer = torch.optim.AdamW([each for each in bare.parameters() if each.requires_grad], lr=1e-5)

        def loop() -> None:
            optimizer.zero_grad()
            vectors = []
            for side in range(2):
                part = texts[side * sizes.texts : side * sizes.texts + sizes.text_batch]
                features = {key: value.to(DEVICE) if torch.is_tensor(value) else value
                            for key, value in bare.preprocess(part).items()}  # fmt: skip
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                    vectors.append(bare(features)["sentence_embedding"].float())
            scores = vectors[0] @ vectors[1].T / 0.05
            torch.nn.functional.cross_entropy(scores, torch.arange(len(scores), device=DEVICE)).backward()
            optimizer.step()

        found["bare loop"] = {"tokens_per_second": counted / timed(loop, sizes.text_steps), "memory": memory_bytes()}
    return found


def one_rank(sizes: Sizes) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kind = "nccl" if DEVICE.type == "cuda" else "gloo"
    dist.init_process_group(kind, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        rows = torch.randn(sizes.batch, sizes.width, device=DEVICE, requires_grad=True)
        gathered, first = gather_rows(rows, with_grad=True)
        gathered.square().sum().backward()
        is_same = torch.equal(gathered, rows) and torch.allclose(rows.grad, 2 * rows) and first == 0
        total = torch.ones(sizes.width, device=DEVICE)
        seconds = timed(lambda: dist.all_reduce(total), sizes.repeats)
        return {"backend": kind, "rows_and_gradients_are_the_same": bool(is_same), "all_reduce_seconds": seconds}
    finally:
        dist.destroy_process_group()


PARTS: dict[str, Callable[[Sizes], dict[str, Any]]] = {
    "step": step, "nccl": one_rank, "trainer": trainer, "fit": fit, "compile": compiled,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that every part runs")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    sizes = SMALL if options.small else Sizes()
    is_gpu = DEVICE.type == "cuda"
    record: dict[str, Any] = {
        "arguments": {"parts": options.parts, "small": options.small},
        "seed": 0,
        "device": torch.cuda.get_device_name() if is_gpu else "CPU",
        "note": "" if is_gpu else "Tried on a CPU only: this shows that the parts run, and nothing about a GPU.",
        "sizes": dataclasses.asdict(sizes),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "parts": {},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        try:
            record["parts"][name] = {"ran": True, **PARTS[name](sizes)}
        except Exception as error:  # one part that fails must not cost the others their time on the card
            record["parts"][name] = {"ran": False, "why": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(name, json.dumps(record["parts"][name])[:300], flush=True)
        write_text(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
