"""Turn decoder language models into backbones as LLM2Vec does: bidirectional attention, mean pooling, LoRA adapters.

BehnamGhader et al., *LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders*, COLM 2024,
https://arxiv.org/abs/2404.05961. transformers 5.2 and later turn the causal mask off if the config says
``is_causal: false``, so the result is an ordinary model without remote code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smec_st.data import DataError
from smec_st.system.errors import one_line
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def decoder_backbone(
    model: str | Path,
    adapters: Sequence[str | Path] = (),
    *,
    merge: bool = True,
    max_seq_length: int = 512,
    dtype: str = "auto",
    prompts: Mapping[str, str] | None = None,
    device: str | None = None,
) -> SentenceTransformer:
    """Load a decoder as a text encoder with bidirectional attention, mean pooling, and vectors of unit length.

    Args:
        model: Id or folder of a causal language model; its output head is not used.
        adapters: Ids or folders of LoRA adapters, applied in order. LLM2Vec has two: masked next token prediction,
            then contrastive training.
        merge: Merge the adapters into the weights, which gives one model that every server reads. False keeps a single
            adapter as a reference to ``model``: an export then has a few MB, needs ``peft`` where it is loaded, and
            does not work with vLLM or TEI. The ``config.json`` of ``model`` must then contain ``is_causal`` (true or
            false), because otherwise transformers 5 ignores the setting that comes with the reference.
        max_seq_length: Number of tokens read from each text.
        dtype: Type of the weights: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        prompts: Instructions prepended to texts, by name, usually ``query`` and ``document``.
        device: Device to load the model on.

    Raises:
        DataError: If the model cannot be loaded, its attention stays causal, or the adapters do not fit ``merge``.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    if not merge and len(adapters) != 1:
        raise DataError(f"without merging there must be one adapter, got {len(adapters)}; merge them.")
    options: dict[str, Any] = {"model_kwargs": {"dtype": dtype}, "config_kwargs": {"is_causal": False}}
    name = str(model if merge else adapters[0])
    try:
        transformer = Transformer(name, max_seq_length=max_seq_length, **options)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"cannot load the model {model}: {one_line(error)}") from error
    if not merge and getattr(transformer.auto_model.config, "is_causal", None) is not False:
        raise DataError(
            f"the config of {model} does not state `is_causal`, so a reference to it would load causal; merge the "
            "adapters, or publish the base once with `is_causal` in its config.json."
        )
    if merge and adapters:
        transformer.model = _merged(transformer.auto_model, adapters)
    transformer.auto_model.config.is_causal = False
    if transformer.tokenizer.pad_token is None:
        transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    modules = [transformer, pooling, Normalize()]
    encoder = SentenceTransformer(modules=modules, prompts=dict(prompts or {}), device=device)
    if not looks_both_ways(encoder):
        raise DataError(
            f"{model} stays causal: its architecture does not know `is_causal: false`, or transformers is old."
        )
    encoder.model_card_data.base_model = str(model)
    return encoder


def _merged(backbone: Any, adapters: Sequence[str | Path]) -> Any:
    peft = load_optional("peft", "merging adapters")
    for adapter in adapters:
        try:
            backbone = peft.PeftModel.from_pretrained(backbone, str(adapter)).merge_and_unload()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"cannot apply the adapter {adapter}: {one_line(error)}") from error
    return backbone


def looks_both_ways(model: SentenceTransformer) -> bool:
    """Return whether attention is bidirectional: the first token's vector depends on the last token."""
    import torch

    backbone: Any = model[0]
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]], device=model.device)
    with torch.inference_mode():
        first = backbone.auto_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return not torch.equal(first[0], first[1])
