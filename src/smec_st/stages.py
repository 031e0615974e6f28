"""The plan: which size is trained when, and from what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Order = Literal["grow", "shrink"]
Phase = Literal["select", "adapt", "joint"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of SMRL.

    In ``grow`` a stage adds the columns ``have .. out_dim`` to those that are frozen, reading the backbone's vector.
    In ``shrink`` it maps the previous stage's ``in_dim`` outputs to ``out_dim``, as published.

    A size may take two stages: ``select`` lets ADS choose the directions to begin from, ``adapt`` then trains the map
    from them. ``joint`` does both at once, as published.

    Attributes:
        index: Position in the plan, from 0.
        order: Which way the sizes go.
        phase: What is trained: the selection, the adapter, or both.
        in_dim: Width the stage reads.
        out_dim: The size it delivers.
        have: Columns already there that stay as they are; 0 in ``shrink``.
        candidates: Directions that ADS chooses from.
    """

    index: int
    order: Order
    phase: Phase
    in_dim: int
    out_dim: int
    have: int = 0
    candidates: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.have < self.out_dim <= self.in_dim:
            raise ValueError(f"A stage needs 0 <= have < out_dim <= in_dim, got {self}.")
        if not self.new_dims <= self.candidates <= self.in_dim:
            raise ValueError(f"`candidates` must be in [{self.new_dims}, {self.in_dim}], got {self.candidates}.")

    @property
    def new_dims(self) -> int:
        """Columns this stage trains."""
        return self.out_dim - self.have

    @property
    def name(self) -> str:
        """Folder name; sorts in the order of the plan."""
        return f"stage-{self.index:02d}-{self.order}-{self.out_dim}-{self.phase}"


def check_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """Sizes in falling order, or a ``ValueError`` that says which one is wrong."""
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
    """The full width and its halvings down to a sixteenth, none below 8.

    Example:
        >>> default_dims(384)
        (384, 192, 96, 48, 24)
    """
    return tuple(width >> i for i in range(5) if width >> i >= min(8, width))


def plan_stages(
    width: int, dims: Sequence[int], order: Order, selection_ratio: float = 2.0, have: int = 0
) -> tuple[Stage, ...]:
    """Stages for these sizes, in the order in which they are trained.

    Args:
        width: Width ``D`` of the vectors.
        dims: Sizes, in any order; not only halvings.
        order: ``grow`` trains the smallest first; ``shrink`` walks down from ``width``. In ``shrink`` the full width
            is the input of the first stage and no stage of its own.
        selection_ratio: In ``grow``, how many directions ADS chooses from per direction it keeps; 1 leaves nothing to
            choose. The first size always begins from the leading principal axes (measured: choosing costs it quality).
            In ``shrink`` ADS always chooses from all.
        have: In ``grow``, columns that exist already; ``dims`` must be above.

    Returns:
        The plan.
    """
    falling = check_dims(dims, width)
    if order == "shrink":
        below = [dim for dim in falling if dim < width]
        if not below:
            raise ValueError(f"The order `shrink` needs a size below the vectors' width {width}.")
        widths = [width, *below]
        return tuple(
            Stage(index=i, order="shrink", phase="joint", in_dim=wide, out_dim=narrow, candidates=wide)
            for i, (wide, narrow) in enumerate(zip(widths, below, strict=False))
        )
    if order != "grow":
        raise ValueError(f"`order` must be grow or shrink, got {order!r}.")
    if falling[-1] <= have:
        raise ValueError(f"`dims` must be above the {have} columns that exist, got {falling[-1]}.")
    stages: list[Stage] = []
    for dim in falling[::-1]:
        new = dim - have
        candidates = min(max(new, round(new * selection_ratio)), width - have) if have else new
        if candidates > new:
            stages.append(
                Stage(
                    index=len(stages),
                    order="grow",
                    phase="select",
                    in_dim=width,
                    out_dim=dim,
                    have=have,
                    candidates=candidates,
                )
            )
        stages.append(
            Stage(index=len(stages), order="grow", phase="adapt", in_dim=width, out_dim=dim, have=have, candidates=new)
        )
        have = dim
    return tuple(stages)


@dataclass(kw_only=True)
class StageReport:
    """What a finished stage did.

    Attributes:
        stage: The stage's name.
        dim: The size it delivered.
        steps: Optimizer steps.
        seconds: Wall time of training.
        loss: Mean training loss.
        strength: How far from the start (0) to the result (1) the guard went.
        held_out: nDCG@10 on held-out queries by strength; empty without held-out queries.
        scores: The same query by query, for cross-validation.
        selected: Positions that ADS kept, of the directions it could choose from.
    """

    stage: str
    dim: int
    steps: int
    seconds: float
    loss: float
    strength: float = 1.0
    held_out: dict[str, float] = field(default_factory=dict)
    selected: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, without the scores of single queries."""
        return {name: value for name, value in asdict(self).items() if name != "scores"}

    def verdict(self) -> str:
        """What held-out queries chose, and by which scores; empty without them."""
        if not self.held_out:
            return ""
        start, result = self.held_out["0"], self.held_out["1"]
        chosen = {1.0: "the result", 0.0: "the start"}.get(self.strength)
        if chosen is None:
            chosen = f"{self.strength:.0%} of the way, {self.held_out[f'{self.strength:g}']:.3f}"
        return f"{self.dim} dims: start {start:.3f}, result {result:.3f}; kept {chosen}"
