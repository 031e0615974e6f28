"""Compress the vectors of any embedding model: SMEC for sentence-transformers.

Importing this package is cheap: every name below is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AdaptiveDimensionSelection": "smec_st.modules",
    "Bridge": "smec_st.compressor",
    "BridgedIndex": "smec_st.search",
    "Collection": "smec_st.data",
    "Compressor": "smec_st.compressor",
    "DataError": "smec_st.data",
    "EmbeddingInput": "smec_st.modules",
    "FitConfig": "smec_st.fitting.config",
    "LossSettings": "smec_st.losses.settings",
    "FunnelIndex": "smec_st.search",
    "Qrels": "smec_st.data",
    "ResidualAdapter": "smec_st.modules",
    "SMECLoss": "smec_st.losses.smec",
    "SelectableCrossBatchMemory": "smec_st.losses.memory",
    "SequentialTrainer": "smec_st.training.trainer",
    "SequentialTrainingArguments": "smec_st.training.arguments",
    "SpreadPairSampler": "smec_st.training.sampler",
    "VectorTable": "smec_st.data",
    "load_collection": "smec_st.data",
    "load_vectors": "smec_st.data",
    "open_vectors": "smec_st.data",
}

__all__ = [
    "AdaptiveDimensionSelection",
    "Bridge",
    "BridgedIndex",
    "Collection",
    "Compressor",
    "DataError",
    "EmbeddingInput",
    "FitConfig",
    "FunnelIndex",
    "LossSettings",
    "Qrels",
    "ResidualAdapter",
    "SMECLoss",
    "SelectableCrossBatchMemory",
    "SequentialTrainer",
    "SequentialTrainingArguments",
    "SpreadPairSampler",
    "VectorTable",
    "load_collection",
    "load_vectors",
    "open_vectors",
]

if TYPE_CHECKING:
    from smec_st.compressor import Bridge, Compressor
    from smec_st.data import Collection, DataError, Qrels, VectorTable, load_collection, load_vectors, open_vectors
    from smec_st.fitting.config import FitConfig
    from smec_st.losses.memory import SelectableCrossBatchMemory
    from smec_st.losses.settings import LossSettings
    from smec_st.losses.smec import SMECLoss
    from smec_st.modules import AdaptiveDimensionSelection, EmbeddingInput, ResidualAdapter
    from smec_st.search import BridgedIndex, FunnelIndex
    from smec_st.training.arguments import SequentialTrainingArguments
    from smec_st.training.sampler import SpreadPairSampler
    from smec_st.training.trainer import SequentialTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'smec_st' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
