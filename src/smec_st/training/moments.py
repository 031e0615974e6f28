"""Compute mean and second moment of a corpus of any size, from which training starts."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from smec_st.data import Table
from smec_st.functional import second_moment

_KNOWN: WeakKeyDictionary[Table, dict[int, tuple[Tensor, Tensor]]] = WeakKeyDictionary()  # each trial asks again


def corpus_moments(table: Table, chunk: int = 16384, most: int = 1 << 16) -> tuple[Tensor, Tensor]:
    """Compute the mean ``(D,)`` and the uncentred second moment ``(D, D)`` of the corpus, float64, read in chunks.

    Of more than ``most`` documents a random sample of that size is read: it costs ``D^2`` a row, and the axes of
    65,536 documents are those of ten million. They are computed once for each table.
    """
    known = _KNOWN.setdefault(table, {})
    if most in known:
        return known[most]
    rows = torch.arange(table.corpus_size)
    if table.corpus_size > most:
        drawn = np.random.default_rng(0).choice(table.corpus_size, most, replace=False, shuffle=False)
        rows = torch.from_numpy(np.sort(drawn))
    moment = torch.zeros(table.width, table.width, dtype=torch.float64)
    mean = torch.zeros(table.width, dtype=torch.float64)
    for part in rows.split(chunk):
        vectors = table[part]
        moment += second_moment(vectors) * len(part)
        mean += vectors.double().sum(dim=0)
    known[most] = mean / len(rows), moment / len(rows)
    return known[most]


def forget_moments(table: Table) -> None:
    """Drop the cached moments of a table, because its vectors have changed."""
    _KNOWN.pop(table, None)
