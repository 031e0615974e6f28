"""Small random models, made offline."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = (
    "how to join two paths a cat sat on the mat sorting is stable x delete directory tree what query : text".split()
)


def _tokenizer(folder: Path, **special: str):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*names, *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        **special,
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def tiny_bert(folder: Path, width: int = 32, pooling: str = "mean"):
    """A random BERT as a sentence-transformers model: transformer, pooling, normalize."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    size = _tokenizer(folder)
    config = BertConfig(
        vocab_size=size,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    transformer = Transformer(str(folder))
    model = SentenceTransformer(modules=[transformer, Pooling(width, pooling_mode=pooling), Normalize()], device="cpu")
    model.prompts = {"query": "query: ", "document": ""}
    return model


def tiny_qwen2(folder: Path, width: int = 48, **more: object):
    """A random Qwen2 decoder with its tokenizer, as a folder of transformers; ``more`` goes into its config.json."""
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    size = _tokenizer(folder)
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    Qwen2Model(config).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder
