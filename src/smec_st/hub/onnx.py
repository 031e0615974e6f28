"""The whole model, backbone and folded head, as one ONNX graph: for servers and browsers that have no torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from smec_st.data import DataError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FILE = Path("onnx", "model.onnx")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOKENS, VECTOR = "last_hidden_state", "sentence_embedding"


class _Whole(nn.Module):
    """Token ids to token vectors and the finished, unit-length vector."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.backbone: Any = modules[0].auto_model
        self.rest = nn.ModuleList(modules[1:])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(batch, sequence)`` ids to ``(batch, sequence, width)`` and ``(batch, dim)``."""
        more: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        features = {"token_embeddings": tokens, "attention_mask": attention_mask, "input_ids": input_ids}
        for module in self.rest:
            features = module(features)
        return tokens, features["sentence_embedding"]


def write_onnx(model: SentenceTransformer, folder: Path) -> Path:
    """Write ``onnx/model.onnx`` into an exported model's folder.

    Inputs are what the tokenizer gives, ``(batch, sequence)`` of int64. Outputs are ``last_hidden_state``, which
    sentence-transformers' own ONNX backend and TEI read, and ``sentence_embedding``, which is the compressed vector.

    Raises:
        DataError: If the extra ``onnx`` is missing, or the backbone is not a text model.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DataError('ONNX needs an extra: pip install "smec-st[onnx]".') from error
    modules = list(model)
    if not hasattr(modules[0], "auto_model") or not model.supports("text"):
        raise DataError("only models that read text are exported to ONNX.")
    sample = model.preprocess(["two words", "one more text than that"])
    names = [name for name in INPUTS if name in sample]
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=_longest(model))
    path = folder / FILE
    path.parent.mkdir()
    whole: Any = _Whole(modules).eval().cpu()
    with warnings.catch_warnings(), _silence():
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
    return path


def _longest(model: SentenceTransformer) -> int:
    return int(model.max_seq_length or 512)


@contextlib.contextmanager
def _silence() -> Any:
    """The exporter tells of every pass that it makes."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
