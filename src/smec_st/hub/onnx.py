"""Export backbone and compressor as one ONNX graph, for servers and browsers without torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from smec_st.data import DataError
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FILE = Path("onnx", "model.onnx")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKENS, VECTOR = "last_hidden_state", "sentence_embedding"


class _WholeModel(nn.Module):
    """Maps token ids to token vectors and to the compressed vector of unit length."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.backbone: Any = modules[0].auto_model
        self.rest = nn.ModuleList(modules[1:])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map ids ``(batch, sequence)`` to ``(batch, sequence, width)`` and ``(batch, dim)``."""
        types: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        features = {"token_embeddings": tokens, "attention_mask": attention_mask, "input_ids": input_ids}
        for module in self.rest:
            features = module(features)
        return tokens, features["sentence_embedding"]


def write_onnx(model: SentenceTransformer, folder: Path) -> None:
    """Write ``onnx/model.onnx`` into the folder of an exported model.

    The inputs are those that the tokenizer gives, ``(batch, sequence)`` int64. The outputs are ``last_hidden_state``,
    which the ONNX backend of sentence-transformers reads, and ``sentence_embedding``, the compressed vector, which
    text-embeddings-inference reads.

    Raises:
        DataError: If the packages of the extra ``onnx`` are missing, or the model does not read text.
    """
    for package in ("onnx", "onnxscript"):
        load_optional(package, "writing ONNX")
    modules = list(model)
    if not hasattr(modules[0], "auto_model") or not model.supports("text"):
        raise DataError("only models that read text are exported to ONNX.")
    sample = model.preprocess(["two words", "one more text than that"])
    names = [name for name in INPUTS if name in sample]
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=int(model.max_seq_length or 512))
    path = folder / FILE
    path.parent.mkdir()
    whole: Any = _WholeModel(modules).eval().cpu()
    with warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            whole,
            tuple(sample[name].cpu() for name in names),
            dynamo=True,
            dynamic_shapes=tuple({0: batch, 1: sequence} for _ in names),
            input_names=names,
            output_names=[TOKENS, VECTOR],
            verbose=False,
        )
        program.save(str(path))


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the messages in which the exporter reports every pass over the graph."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
