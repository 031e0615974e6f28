"""A backbone that trains with the first stage, and is frozen with it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from smec_st.data import EncodedTable, Table
from smec_st.modules import EmbeddingInput, LiveBackbone

PREFIX = "backbone."  # how names of its tensors begin


class BackboneInTraining:
    """What the trainer asks of a backbone while it trains and afterwards.

    Args:
        model: Its first module is a :class:`~smec_st.modules.LiveBackbone`, until :meth:`finish`.
        table: Encodes rows with the same backbone.

    Raises:
        ValueError: If the table is no :class:`~smec_st.data.EncodedTable`.
    """

    def __init__(self, model: SentenceTransformer, table: Table) -> None:
        if not isinstance(table, EncodedTable):
            raise ValueError("A backbone trains on texts or images: `table` must be an EncodedTable of it.")
        assert isinstance(model[0], LiveBackbone)
        self._model, self._table, self._backbone = model, table, model[0]
        self._trained = [name for name, parameter in self._backbone.named_parameters() if parameter.requires_grad]

    @property
    def is_live(self) -> bool:
        """Whether it still trains."""
        return self._model[0] is self._backbone

    @property
    def trains(self) -> bool:
        """Whether any of its weights train, or trained in an earlier stage."""
        return bool(self._trained)

    def begin(self) -> None:
        """Unfreeze what is to train, except what no output depends on (a pooler): DDP would wait for its gradients."""
        for name, parameter in self._backbone.named_parameters():
            parameter.requires_grad_(name in self._trained)
        for rows, side in ((torch.tensor([0]), "document"), (torch.tensor([self._table.corpus_size]), "query")):
            if int(rows) < len(self._table):
                inputs = self._table.inputs(rows, side)
                device = self._model.device
                features = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
                self._backbone(features)["sentence_embedding"].sum().backward()
        for parameter in self._backbone.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
            parameter.grad = None

    def finish(self) -> None:
        """Encode the table again for the later stages, each item once."""
        self._backbone.eval()
        self._backbone.requires_grad_(False)
        self._model[0] = EmbeddingInput(self._table.width)
        self._table.forget()

    def state(self) -> dict[str, Tensor]:
        """Return the weights that it has learned so far, by name."""
        state = self._backbone.state_dict()
        buffers = {name for name, _ in self._backbone.named_buffers()}
        kept = [name for name in state if name in buffers or name in self._trained]
        return {PREFIX + name: state[name].detach().clone() for name in kept}

    def load(self, path: Path) -> None:
        """Restore :meth:`state` from a file that may hold more.

        Raises:
            ValueError: If something is missing.
        """
        saved = load_file(path)
        state = {name.removeprefix(PREFIX): value for name, value in saved.items() if name.startswith(PREFIX)}
        missing = {name.removeprefix(PREFIX) for name in self.state()} - set(state)
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} weights of this backbone, {sorted(missing)[0]} among them.")
        self._backbone.load_state_dict(state, strict=False)
