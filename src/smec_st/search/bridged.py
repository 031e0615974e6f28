"""Search an index of an old model with queries of a new one, while documents move to an index of the new model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from smec_st.compressor import Bridge
from smec_st.data import DataError
from smec_st.data.space import check_backbone
from smec_st.search.backend import Columns, Ids
from smec_st.search.filters import Where
from smec_st.search.funnel import FunnelIndex
from smec_st.search.steps import Hits, best_first


def bridged_queries(index: FunnelIndex, bridge: Bridge, queries: ArrayLike) -> np.ndarray:
    """Map queries of the new model to the widest vectors that an index of the old model searches.

    Args:
        index: Documents of the old model.
        bridge: Maps into the space of this index, compressed or original.
        queries: ``(Q, D)`` or ``(D,)`` vectors of the new model.

    Raises:
        DataError: If the bridge leads elsewhere.
    """
    return bridge.transform(np.asarray(queries), _size(index, bridge))


def _size(index: FunnelIndex, bridge: Bridge) -> int:
    """The widest size that both the bridge writes and the index searches."""
    settings = index.settings
    if bridge.space is None:
        check_backbone(bridge.info.get("old") or {}, index.compressor.info.get("backbone") or {}, index.uri,
                       "this bridge leads to vectors of")  # fmt: skip
        if bridge.dims[0] != settings.width:
            raise DataError(
                f"the bridge leads to vectors of {bridge.dims[0]} numbers; {index.uri} reads {settings.width}."
            )
        return bridge.dims[0]
    if bridge.space != settings.fingerprint:
        raise DataError(
            f"the bridge leads to the space of the compressor {bridge.space}; {index.uri} was made with "
            f"{settings.fingerprint}. Fit a bridge with that compressor."
        )
    shared = set(bridge.dims) & set(settings.sizes)
    if not shared:
        raise DataError(f"{index.uri} stores the sizes {settings.sizes}, and the bridge writes {bridge.dims}.")
    return max(shared)


def is_same_place(one: str, other: str) -> bool:
    """Whether two addresses of indexes name one folder, file or server."""
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return Path(os.path.expanduser(one)).resolve() == Path(os.path.expanduser(other)).resolve()


class BridgedIndex:
    """Two indexes searched as one: the old model's, through a bridge, and the new model's, which takes over.

    Re-embed documents part by part and :meth:`move` each part; searches go on and get better with every part.
    Scores of the old index are brought to the scale of the new model's cosines, as measured on held-out queries.
    When the old index is empty, search the new one alone.

    Args:
        old: Documents that wait to be embedded anew.
        new: Documents that the new model has embedded. It must keep originals, because their cosines are what scores
            are compared by.
        bridge: Maps queries of the new model into the old index.

    Raises:
        DataError: If the bridge, the indexes and their ids do not belong together.
    """

    def __init__(self, old: FunnelIndex, new: FunnelIndex, bridge: Bridge) -> None:
        if old.settings.fingerprint == new.settings.fingerprint and is_same_place(old.uri, new.uri):
            raise DataError(f"{old.uri} cannot be both the old index and the new one.")
        self.old, self.new, self.bridge = old, new, bridge
        self._dim = _size(old, bridge)
        bridge.check(new.compressor.info.get("backbone") or {}, new.uri)
        if new.settings.width != bridge.width or not new.settings.originals:
            raise DataError(
                f"{new.uri} must hold originals of {bridge.width} numbers, the new model's, to be searched beside "
                f"{old.uri}."
            )
        if old.settings.id_type != new.settings.id_type:
            raise DataError(f"{old.uri} has ids of type {old.settings.id_type}, {new.uri} {new.settings.id_type}.")

    def move(self, vectors: ArrayLike, ids: Ids, fields: Columns | None = None) -> None:
        """Add documents to the new index and delete them from the old one.

        They are added before they are deleted. Interrupted in between, they are in both, where the new ones count; the
        same call again finishes it.

        Args:
            vectors: ``(n, D)`` vectors of the new model.
            ids: Their ids, as in the old index.
            fields: Values of each scalar field of the new index.
        """
        self.new.add(vectors, ids, fields, replace=True)
        self.new.flush()
        self.old.delete(ids)

    def search(self, queries: ArrayLike, k: int = 10, *, where: Where | None = None) -> Hits:
        """Find the ``k`` nearest documents of both indexes.

        Args:
            queries: ``(Q, D)`` or ``(D,)`` vectors of the new model.
            k: Number of results per query.
            where: Filter, which both indexes apply.

        Returns:
            As :meth:`FunnelIndex.search`; scores are cosines of the new model, estimated for what the old index found.
        """
        bridged = self.bridge.transform(np.asarray(queries), self._dim)
        before, after = self.old.search(bridged, k, where=where), self.new.search(queries, k, where=where)
        factor, offset = self.bridge.info["kept"]["scales"][str(self._dim)]
        empty = self.new.settings.no_id
        scores = np.where(before.scores > -np.inf, factor * before.scores + offset, -np.inf).astype(np.float32)
        twice = (before.ids[:, :, None] == after.ids[:, None, :]).any(axis=2) & (before.ids != empty)
        scores[twice] = -np.inf
        ids = np.concatenate([after.ids, np.where(scores > -np.inf, before.ids, empty)], axis=1)
        return Hits(*best_first(ids, np.concatenate([after.scores, scores], axis=1), k))
