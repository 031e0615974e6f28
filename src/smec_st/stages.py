"""The plan of a fit: which stages are trained, in which order, and what each one delivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Order = Literal["grow", "shrink"]
Phase = Literal["adapt", "select", "compress", "joint"]

NARROW_HIDDEN = 1 / 24  # of the width: sizes up to here are too small for a linear map, and get a hidden layer


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of SMRL: it trains its own modules, and they are frozen when it ends.

    In the order ``grow`` the phases are:

    * ``adapt``: a map of the full width onto itself, which moves the vectors towards the labels;
    * ``select``: ADS chooses which principal axes the next stage begins from;
    * ``compress``: the columns ``have .. out_dim`` of one nested map, all sizes in one pass.

    In the order ``shrink``, as published, each size is one ``joint`` stage: ADS and the map from the previous stage's
    ``in_dim`` outputs to ``out_dim`` are trained together.

    Attributes:
        index: Position in the plan, from 0.
        order: Which way the sizes go.
        phase: What is trained.
        in_dim: Width the stage reads.
        out_dim: Largest size that it delivers.
        sizes: All sizes that it trains, ascending; the last one is ``out_dim``.
        have: Columns that exist already and stay as they are; 0 in ``shrink``.
        candidates: Directions that ADS chooses from; ``new_dims`` where there is nothing to choose.
    """

    index: int
    order: Order
    phase: Phase
    in_dim: int
    out_dim: int
    sizes: tuple[int, ...] = ()
    have: int = 0
    candidates: int = 0

    def __post_init__(self) -> None:
        if not self.sizes:
            object.__setattr__(self, "sizes", (self.out_dim,))
        if not self.candidates:
            object.__setattr__(self, "candidates", self.new_dims)
        if not 0 <= self.have < self.sizes[0] <= self.out_dim <= self.in_dim:
            raise ValueError(f"A stage needs 0 <= have < sizes <= out_dim <= in_dim, got {self}.")
        if list(self.sizes) != sorted(set(self.sizes)) or self.sizes[-1] != self.out_dim:
            raise ValueError(f"`sizes` must ascend and end with `out_dim`, got {self}.")
        if not self.new_dims <= self.candidates <= self.in_dim:
            raise ValueError(f"`candidates` must be in [{self.new_dims}, {self.in_dim}], got {self.candidates}.")

    @property
    def new_dims(self) -> int:
        """Columns that this stage adds."""
        return self.out_dim - self.have

    @property
    def name(self) -> str:
        """Folder name; names sort in the order of the plan."""
        return f"stage-{self.index:02d}-{self.order}-{self.out_dim}-{self.phase}"


def check_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """Return sizes in descending order; a ``ValueError`` names a wrong one."""
    if any(dim != int(dim) for dim in dims):
        raise ValueError(f"`dims` must be whole numbers, got {','.join(map(str, dims))}.")
    dims = [int(dim) for dim in dims]
    if not dims:
        raise ValueError("`dims` must name at least one size.")
    if min(dims) < 1:
        raise ValueError(f"`dims` must be 1 or more, got {min(dims)}.")
    if max(dims) > width:
        raise ValueError(f"`dims` must not exceed the vectors' width {width}, got {max(dims)}.")
    if len(set(dims)) != len(dims):
        raise ValueError(f"`dims` must not repeat, got {','.join(map(str, dims))}.")
    return tuple(sorted(dims, reverse=True))


def default_dims(width: int) -> tuple[int, ...]:
    """Return the full width and its halvings down to a sixteenth, none below 8.

    Example:
        >>> default_dims(384)
        (384, 192, 96, 48, 24)
    """
    return tuple(width >> i for i in range(5) if width >> i >= min(8, width))


def plan_stages(
    width: int,
    dims: Sequence[int],
    order: Order,
    *,
    adapt: bool = False,
    selection_ratio: float = 1.0,
    have: int = 0,
) -> tuple[Stage, ...]:
    """Stages for these sizes, in the order in which they are trained.

    Args:
        width: Width ``D`` of the vectors.
        dims: Sizes, in any order; they need not be halvings.
        order: ``grow`` trains one nested map, all sizes in one pass; ``shrink`` walks down from ``width`` with one
            stage per size. In ``shrink`` the full width is the input of the first stage and no stage of its own.
        adapt: In ``grow``, whether a map of the full width is trained first.
        selection_ratio: In ``grow``, how many principal axes ADS chooses from per axis that it keeps; 1 leaves nothing
            to choose. In ``shrink`` ADS always chooses from all.
        have: In ``grow``, number of columns that exist already; all ``dims`` must be larger.

    Raises:
        ValueError: If a size does not fit.
    """
    descending = check_dims(dims, width)
    if order == "shrink":
        below = [dim for dim in descending if dim < width]
        if not below:
            raise ValueError(f"The order `shrink` needs a size below the vectors' width {width}.")
        widths = [width, *below]
        return tuple(
            Stage(index=i, order="shrink", phase="joint", in_dim=wide, out_dim=narrow, candidates=wide)
            for i, (wide, narrow) in enumerate(zip(widths, below, strict=False))
        )
    if order != "grow":
        raise ValueError(f"`order` must be grow or shrink, got {order!r}.")
    if descending[-1] <= have:
        raise ValueError(f"`dims` must be above the {have} columns that exist, got {descending[-1]}.")
    stages: list[Stage] = []
    if adapt:
        stages.append(Stage(index=0, order="grow", phase="adapt", in_dim=width, out_dim=width))
    largest, sizes = descending[0], descending[::-1]
    candidates = min(round((largest - have) * max(selection_ratio, 1.0)), width - have)
    if candidates > largest - have:
        index = len(stages)
        stages.append(
            Stage(
                index=index, order="grow", phase="select", in_dim=width, out_dim=largest, have=have,
                candidates=candidates,
            )
        )  # fmt: skip
    stages.append(
        Stage(index=len(stages), order="grow", phase="compress", in_dim=width, out_dim=largest, sizes=sizes, have=have)
    )
    return tuple(stages)


@dataclass(kw_only=True)
class StageReport:
    """The record of a finished stage.

    Attributes:
        stage: The stage's name.
        dim: The largest size that it delivered.
        steps: Optimizer steps.
        seconds: Wall time of training.
        loss: Mean training loss.
        selected: Positions that ADS kept, of the directions it could choose from.
        decision: Whether held-out queries kept what the stage learned; None when none were asked.
        rounding: Precision, size and bytes that the stage trained through; None when it trained on floats alone.
    """

    stage: str
    dim: int
    steps: int
    seconds: float
    loss: float
    selected: list[int] = field(default_factory=list)
    decision: dict[str, Any] | None = None
    rounding: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)
