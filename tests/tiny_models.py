"""Randomly initialised models of a few kilobytes, made from configs: nothing is downloaded."""

from __future__ import annotations

import json

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)

WORDS = [f"w{i}" for i in range(80)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_tokenizer(folder) -> None:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "query", "document", ":", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    )
    fast.save_pretrained(folder)


def tiny_transformer(folder, kind: str = "bert", width: int = 16) -> Transformer:
    """BERT, or Qwen2 with attention both ways as LLM2Vec has it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(SPECIAL) + 3 + len(WORDS),
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 32,
        "initializer_range": 0.5,
    }
    if kind == "bert":
        BertModel(BertConfig(**sizes)).save_pretrained(folder)
    else:
        Qwen2Model(Qwen2Config(**sizes, num_key_value_heads=1, is_causal=False)).save_pretrained(folder)
    write_tokenizer(folder)
    return Transformer(str(folder))


def tiny_model(folder, kind: str = "bert", prompts: dict[str, str] | None = None) -> SentenceTransformer:
    transformer = tiny_transformer(folder, kind)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu", prompts=prompts)


def tiny_router(folder) -> SentenceTransformer:
    folder.mkdir(exist_ok=True)
    sides = []
    for name in ("query", "document"):
        transformer = tiny_transformer(folder / name)
        sides.append([transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")])
    return SentenceTransformer(modules=[Router.for_query_document(*sides), Normalize()], device="cpu")


def tiny_clip(folder) -> SentenceTransformer:
    """Texts and images into one space of 16 numbers."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    letters = [chr(c) for c in range(97, 123)] + [chr(c) for c in range(48, 58)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 32,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return SentenceTransformer(str(folder), device="cpu")
