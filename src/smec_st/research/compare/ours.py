"""Our own method behind the interface of its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from smec_st.research.baselines import FloatEncoder, TrainingData


@dataclass(frozen=True)
class SMEC:
    """:meth:`~smec_st.Compressor.fit`, with labels or without; without a dev split it shares the labels out itself.

    Args:
        method: A name in :data:`~smec_st.fitting.config.METHODS`.
        settings: Fields of :class:`~smec_st.FitConfig` that differ from the method's.
    """

    method: str = "smec"
    settings: Mapping[str, Any] = field(default_factory=dict)

    is_random: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        from smec_st.compressor import Compressor

        table = data.table
        train, dev = (data.train, data.dev) if data.judged is None else (data.judged, None)
        queries = torch.arange(table.corpus_size, len(table))
        compressor = Compressor.fit(
            data.corpus,
            table[queries].numpy(),
            train,
            dims,
            dev_qrels=dev,
            method=self.method,
            unlabelled_queries=data.queries,
            own_document=table.own(queries).numpy(),
            **{**self.settings, "seed": seed},
        )
        return FloatEncoder(compressor.transform, compressor.dims)


@dataclass(frozen=True)
class ResidualSMEC(SMEC):
    """The same with a hidden layer as wide as the vectors: the residual reading of the published layers."""

    def fit(self, data: TrainingData, dims: Sequence[int], seed: int = 0) -> FloatEncoder:
        """See :class:`~smec_st.research.baselines.Method`."""
        return SMEC.fit(replace(self, settings={**self.settings, "hidden_dim": data.table.width}), data, dims, seed)
