"""Arguments of the staged trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from sentence_transformers import SentenceTransformerTrainingArguments


@dataclass
class SequentialTrainingArguments(SentenceTransformerTrainingArguments):
    """Arguments of :class:`SequentialTrainer`; step counts, learning rate and schedule apply to each stage anew.

    Args:
        dims: Sizes to train; None for :func:`~smec_st.stages.default_dims`.
        order: ``grow`` or ``shrink``; see :class:`~smec_st.stages.Stage`.
        start: What adapters begin from: ``principal`` axes of the data (of what the frozen columns leave over), or the
            ``identity``, as published.
        hidden_dim: Width of each adapter's hidden layer; None for linear adapters.
        narrow_hidden_dim: With labels, in ``grow``, width of a hidden layer for the outputs of sizes of at most
            :data:`~smec_st.stages.NARROW_HIDDEN` of the width; None for none. Ignored where ``hidden_dim`` is
            given.
        activation: Of the hidden layer.
        adapt_steps: Steps of the ``adapt`` stage, in ``grow``, with labels, and where no backbone trains; 0 for none.
            Few steps from the identity correct what is wrong with all queries alike; more would learn the training
            queries by heart.
        adapt_rate: Learning rate of that stage times the width, constant: a step moves no unit vector by more.
        selection_ratio: Principal axes that ADS chooses from per axis kept, in ``grow``; 1 for no ``select`` stage.
        selection_steps: Steps of a ``select`` stage.
        selection_learning_rate: Learning rate of the selection's logits.
        selection_tau: Temperature of the selection at the first and the last step; linear in between.
        backbone_learning_rate: Learning rate of a backbone that trains with the first stage.
    """

    dims: list[int] | None = None
    order: str = "grow"
    start: str = "principal"
    hidden_dim: int | None = None
    narrow_hidden_dim: int | None = None
    activation: str = "relu"
    adapt_steps: int = 100
    adapt_rate: float = 0.2
    selection_ratio: float = 1.0
    selection_steps: int = 120
    selection_learning_rate: float = 0.05
    selection_tau: list[float] = field(default_factory=lambda: [1.0, 0.1])
    backbone_learning_rate: float = 2e-5
    max_steps: int = 250
    learning_rate: float = 1e-2
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    per_device_train_batch_size: int = 128
    logging_steps: float = 50
    ddp_find_unused_parameters: bool | None = False
    dataloader_pin_memory: bool = False

    def __post_init__(self) -> None:
        drop_last: bool = self.dataloader_drop_last  # type: ignore[has-type]
        super().__post_init__()
        self.dataloader_drop_last = drop_last  # the parent forces it with several ranks; our sampler gives all as many
        if self.start not in ("principal", "identity"):
            raise ValueError(f"`start` must be principal or identity, got {self.start!r}.")
