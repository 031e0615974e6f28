"""Every setting of a fit, and the methods that have a name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smec_st.data import DataError

CHOICES = {
    "order": ("grow", "shrink"),
    "start": ("principal", "identity"),
    "activation": ("relu", "gelu", "silu"),
    "rank": ("contrastive", "pairwise"),
    "alignment": ("kl", "l1"),
}


#: What None stands for. Classes as labels overwhelm the pull to neighbourhoods, and need smaller steps.
PAIR_DEFAULTS = {"learning_rate": 1e-2, "alignment_weight": 6.0, "narrow_hidden": 4.0, "teacher_strength": 1.0}
CLASS_DEFAULTS = {"learning_rate": 2e-3, "alignment_weight": 0.5, "narrow_hidden": 0.0, "teacher_strength": 0.0}

MOST_FOLDS = 20  # of 40 queries none is empty


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit; names as in a ``--config`` file (JSON or YAML).

    Args:
        dims: Sizes to train; None for the full width and its halvings down to a sixteenth.
        order: ``grow`` (smallest first, nested) or ``shrink`` (as published, a layer per size).
        start: ``principal`` or ``identity``; see :class:`~smec_st.arguments.SequentialTrainingArguments`.
        mean_last: In ``grow``, begin from axes off the direction of the corpus's mean, which comes last; False for
            uncentred PCA.
        hidden_dim: Width of each adapter's hidden layer; None for linear maps.
        narrow_hidden: With labels and the order ``grow``, sizes of a 24th of the width and less get a hidden layer of
            this many times the width, 2,048 at most, where ``hidden_dim`` names none; 0 for linear maps at every size.
            None for 4, and 0 where labels are classes.
        activation: Of the hidden layer.
        selection_ratio: Directions that ADS chooses from per direction kept.
        selection_steps: Steps of the choice.
        steps: Steps of each stage.
        batch_size: Pairs per step.
        learning_rate: Of the map; None for 1e-2, and 2e-3 where labels are classes, or held-out queries choose the
            settings for these (:func:`~smec_st.trials.settle`).
        rank: Supervised term: ``contrastive`` or ``pairwise``.
        alignment: Unsupervised term: ``kl`` or ``l1``.
        rank_weight: Weight of the supervised term.
        alignment_weight: Weight of the unsupervised term; None for 0.5 where labels are classes, and else for 6, or
            what held-out queries choose of 6, 2, 0.5 and 0 where they are many or full width ranks poorly
            (:func:`~smec_st.trials.settle`).
        teacher_strength: With labels and the order ``grow``, how far the full width moves towards these before
            anything is compressed, 0 to 1 (:func:`~smec_st.teacher.train_teacher`): stages begin from the moved
            vectors, and keep their neighbourhoods. None for what held-out queries choose
            (:func:`~smec_st.trials.settle`), 1 without any, and 0 where labels are classes or too few to hold some
            out once. Nothing moves where the activation is not relu, or where sizes are there already.
        reconstruction_weight: Weight of the pull towards the start.
        wide_weight: Weight of the stage's terms before selection (``shrink``).
        tau: Temperature of the contrastive term.
        alignment_tau: Temperature of the KL term.
        narrow_alignment_tau: The same for sizes of a sixteenth of the width and less.
        sharpening: Without labels, the narrower a size, the sharper the neighbourhoods that the KL term keeps:
            ``(width / size) ** sharpening`` times.
        memory: Rows that S-XBM remembers, at most; 0 for the batch's own documents alone.
        top_k: Remembered rows mined per query.
        random_rows: Remembered rows drawn per step.
        stream_rows: Corpus rows that enter a memory smaller than the corpus, per step.
        shadow_share: Share of both terms on queries that goes to shadows of them: queries as they would stand by other
            documents; see :class:`~smec_st.losses.SMECLoss`.
        hard_neighbors: Place this many of each query's nearest training queries in its batch; 0 to spread only.
        guard: Whether held-out queries choose each stage's strength.
        held_out_share: Training queries held out for the guard when there is no dev split.
        folds: Where that share would be fewer than 50 queries, they are held out in so many parts, one after the
            other: as many fits more; the last one trains on all. Where as many queries come without judgements, one
            fit more is without labels, and competes at the smallest sizes. 0 to hold out once.
        checkpoint_steps: Steps between checkpoints.
        seed: Of everything random.
    """

    dims: tuple[int, ...] | None = None
    order: str = "grow"
    start: str = "principal"
    mean_last: bool = True
    hidden_dim: int | None = None
    narrow_hidden: float | None = None
    activation: str = "relu"
    selection_ratio: float = 2.0
    selection_steps: int = 120
    steps: int = 250
    batch_size: int = 256
    learning_rate: float | None = None
    rank: str = "contrastive"
    alignment: str = "kl"
    rank_weight: float = 1.0
    alignment_weight: float | None = None
    teacher_strength: float | None = None
    reconstruction_weight: float = 0.0
    wide_weight: float = 0.0
    tau: float = 0.12
    alignment_tau: float = 0.08
    narrow_alignment_tau: float = 0.05
    sharpening: float = 0.1
    memory: int = 8192
    top_k: int = 10
    random_rows: int = 4096
    stream_rows: int = 256
    shadow_share: float = 0.5
    hard_neighbors: int = 0
    guard: bool = True
    held_out_share: float = 0.1
    folds: int = 4
    checkpoint_steps: int = 125
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dims is not None:
            object.__setattr__(self, "dims", tuple(self.dims))
        for name in ("steps", "batch_size", "random_rows", "selection_steps", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise DataError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if self.memory < 0:
            raise DataError(f"`memory` must be 0 or more, got {self.memory}.")
        if self.folds != 0 and not 2 <= self.folds <= MOST_FOLDS:
            raise DataError(f"`folds` must be 0, or from 2 to {MOST_FOLDS}, got {self.folds}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise DataError(f"`{name}` must be {' or '.join(choices)}, got {getattr(self, name)!r}.")
        if self.order == "grow" and self.start == "identity":
            raise DataError("the order `grow` starts from principal axes; `start: identity` is for `shrink`.")
        for name in ("tau", "alignment_tau", "narrow_alignment_tau", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise DataError(f"`{name}` must be above 0 and finite, got {value}.")
        self._check_amounts()

    def _check_amounts(self) -> None:
        for name in ("narrow_hidden", "sharpening"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise DataError(f"`{name}` must be 0 or more and finite, got {value}.")
        if self.teacher_strength is not None and not 0 <= self.teacher_strength <= 1:
            raise DataError(f"`teacher_strength` must be in [0, 1], got {self.teacher_strength}.")
        for name in ("held_out_share", "shadow_share"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> FitConfig:
        """From plain values; an unknown name or a wrong type is an error that says which."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - set(fields))
        if unknown:
            raise DataError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(fields))}.")
        for name, value in settings.items():
            if not _is_of_the_kind(value, name, fields[name].default):
                raise DataError(f"setting `{name}` must be of the kind of {_example(name, fields)!r}, got {value!r}.")
        return cls(**settings)

    def for_labels(self, are_classes: bool) -> FitConfig:
        """The same with a number wherever None leaves the choice to the kind of labels.

        Args:
            are_classes: Whether labels say which documents are of a query's kind.
        """
        defaults = CLASS_DEFAULTS if are_classes else PAIR_DEFAULTS
        missing: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)

    @property
    def may_move(self) -> bool:
        """Whether a teacher may come before the stages: its map folds into theirs where lengths pass through them."""
        return self.order == "grow" and self.teacher_strength != 0 and self.activation == "relu"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able settings."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]


def _example(name: str, fields: dict[str, dataclasses.Field[Any]]) -> Any:
    return {"dims": [192, 96], "hidden_dim": 64, **PAIR_DEFAULTS}.get(name, fields[name].default)


def _is_of_the_kind(value: Any, name: str, default: Any) -> bool:
    """Whether a plain value may stand where the default stands; a whole number may stand for a float."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name == "dims":
        return value is None or (isinstance(value, list | tuple) and all(type(dim) is int for dim in value))
    if name == "hidden_dim":
        return value is None or whole
    if name in PAIR_DEFAULTS:
        return value is None or whole or isinstance(value, float)
    if isinstance(default, float):
        return whole or isinstance(value, float)
    return whole if type(default) is int else isinstance(value, type(default))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a JSON or YAML file, for :meth:`FitConfig.from_dict`."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is neither JSON nor YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} must hold settings by name.")
    return settings


#: What ``--method`` names: settings that differ from the defaults. "truncate" and "pca" train nothing.
METHODS: dict[str, dict[str, Any]] = {
    "smec": {},
    "smec-published": {
        "order": "shrink",
        "start": "identity",
        "learning_rate": 1e-2,
        "rank": "pairwise",
        "alignment": "l1",
        "alignment_weight": 0.5,
        "wide_weight": 1.0,
        "memory": 5000,
        "random_rows": 1,
        "shadow_share": 0.0,
        "narrow_hidden": 0.0,
        "guard": False,
    },
    "truncate": {},
    "pca": {},
}
