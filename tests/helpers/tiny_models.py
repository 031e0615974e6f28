"""Randomly initialised models of a few kilobytes, made from configs: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
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
    Qwen2Tokenizer,
)

WORDS = [f"w{i}" for i in range(80)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SENTENCES = "how to join two paths a cat sat on the mat sorting is stable x delete directory tree what text"
LENGTH = 64


def bert_tokenizer(folder: Path) -> int:
    """A word each; returns the size of the vocabulary."""
    words = dict.fromkeys([*SPECIAL, "query", "document", ":", *WORDS, *SENTENCES.split()])
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=LENGTH,
    ).save_pretrained(folder)
    return len(vocabulary)


def qwen2_tokenizer(folder: Path) -> int:
    """Bytes, as transformers makes a Qwen2's tokenizer of a vocabulary without merges, whatever else is saved."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["[PAD]", *letters])}
    Qwen2Tokenizer(
        vocab=vocabulary, merges=[], unk_token="[PAD]", eos_token="[PAD]", pad_token="[PAD]", model_max_length=LENGTH
    ).save_pretrained(folder)
    return len(vocabulary)


def tiny_bert_folder(folder: Path, width: int, layers: int, spread: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=bert_tokenizer(folder),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2 * layers,
        intermediate_size=2 * width,
        max_position_embeddings=LENGTH,
        initializer_range=spread,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def tiny_qwen2(folder: Path, width: int = 48, layers: int = 2, spread: float = 0.3, **more: object) -> Path:
    """A Qwen2 decoder with its tokenizer, as a folder of transformers; ``more`` goes into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=qwen2_tokenizer(folder),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2 * layers,
        num_key_value_heads=layers,
        intermediate_size=2 * width,
        max_position_embeddings=LENGTH,
        initializer_range=spread,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
    Qwen2Model(config).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def tiny_bert(folder: Path, width: int = 32, pooling: str = "mean") -> SentenceTransformer:
    """BERT of two layers with a query prompt: transformer, pooling, normalize."""
    transformer = Transformer(str(tiny_bert_folder(folder, width, layers=2, spread=0.3)))
    model = SentenceTransformer(modules=[transformer, Pooling(width, pooling_mode=pooling), Normalize()], device="cpu")
    model.prompts = {"query": "query: ", "document": ""}
    return model


def tiny_transformer(folder: Path, kind: str = "bert", width: int = 16) -> Transformer:
    """BERT, or Qwen2 with attention both ways as LLM2Vec has it, of one layer."""
    if kind == "bert":
        return Transformer(str(tiny_bert_folder(folder, width, layers=1, spread=0.5)))
    return Transformer(str(tiny_qwen2(folder, width, layers=1, spread=0.5, is_causal=False)))


def tiny_model(folder: Path, kind: str = "bert", prompts: dict[str, str] | None = None) -> SentenceTransformer:
    transformer = tiny_transformer(folder, kind)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu", prompts=prompts)


def tiny_static(width: int = 16) -> SentenceTransformer:
    """The mean of a trainable vector for each word: it learns in a few steps."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(WORDS) + 1, width)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights), Normalize()], device="cpu")


def tiny_router(folder: Path) -> SentenceTransformer:
    folder.mkdir(exist_ok=True)
    sides = []
    for name in ("query", "document"):
        transformer = tiny_transformer(folder / name)
        sides.append([transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")])
    return SentenceTransformer(modules=[Router.for_query_document(*sides), Normalize()], device="cpu")


def tiny_clip(folder: Path) -> SentenceTransformer:
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
