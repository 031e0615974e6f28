"""What quantization, model cards and exports need of a compressor, so that they do not depend on its class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from smec_st.maps import FoldedMap
from smec_st.quantization.head import Head


class CompressorLike(Protocol):
    """A :class:`~smec_st.Compressor`, or an object with the same attributes."""

    info: dict[str, Any]
    heads: tuple[Head, ...]

    def __init__(
        self,
        maps: Sequence[tuple[FoldedMap, Sequence[int]]],
        info: dict[str, Any] | None = None,
        heads: Sequence[Head] = (),
    ) -> None: ...

    @property
    def width(self) -> int:
        """Width ``D`` of the vectors that it reads."""

    @property
    def dims(self) -> tuple[int, ...]:
        """All sizes, in descending order."""

    @property
    def nested_dims(self) -> tuple[int, ...]:
        """Sizes that are prefixes of the widest of them, in descending order."""

    @property
    def is_nested(self) -> bool:
        """Whether all sizes are prefixes of the widest."""

    @property
    def fingerprint(self) -> str:
        """A hash of the backbone and the weights."""

    @property
    def maps(self) -> Sequence[tuple[FoldedMap, tuple[int, ...]]]:
        """Folded maps, and the sizes that each serves."""

    def map_for(self, dim: int | None = None) -> FoldedMap:
        """Return the map of a size; by default of the widest."""

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the weights of the maps by name."""

    def save(self, folder: str | Path) -> None:
        """Write the compressor into a new folder."""

    def write_into(self, folder: Path) -> None:
        """Write the compressor into an existing folder."""
