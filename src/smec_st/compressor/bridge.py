"""``Bridge``: queries of a new model search the vectors of the old one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st import __version__
from smec_st.data.own import as_own_document
from smec_st.data.qrels import as_qrels
from smec_st.data.safetensors import read_safetensors
from smec_st.data.space import check_backbone
from smec_st.data.vectors import check_vectors, unit_rows
from smec_st.maps import ACTIVATIONS, FoldedMap, Layer
from smec_st.quantization.head import check_table
from smec_st.system.errors import DataError, one_line, some
from smec_st.system.files import new_folder

if TYPE_CHECKING:
    from smec_st.compressor.compressor import Compressor
    from smec_st.data.qrels import Judgements
    from smec_st.data.vectors import ArrayLike

CONFIG_FILE, WEIGHTS_FILE = "bridge.json", "bridge.safetensors"
FORMAT = 1
LEAST = 0.9  # of the old model's nDCG@10 on held-out queries, below which a bridge is refused


class Bridge:
    """Maps a new model's query vectors into the space of the old model's documents, compressed or not.

    Made by :meth:`fit` or :meth:`load`. The documents stay as they are; the old model is needed no longer.

    Args:
        folded: Map of rows ``[x, 1]``, ``x`` of length 1, ``(n, D + 1) -> (n, d)``.
        sizes: Prefixes of the old space, descending; the first is ``d``.
        info: Both backbones (``old``, ``new``), the old compressor's fingerprint (``space``), and what is ``kept``.
    """

    def __init__(self, folded: FoldedMap, sizes: Sequence[int], info: Mapping[str, Any]) -> None:
        self.folded, self.dims, self.info = folded, tuple(sizes), dict(info)

    @property
    def width(self) -> int:
        """Width ``D`` of the new model's vectors."""
        return self.folded.in_dim - 1

    @property
    def space(self) -> str | None:
        """Fingerprint of the compressor whose space it maps into; None for vectors that are not compressed."""
        return self.info.get("space")

    @property
    def fingerprint(self) -> str:
        """A short hash of both backbones, the old space and the weights."""
        known = [self.info.get(name) for name in ("old", "new", "space")]
        digest = hashlib.sha256(json.dumps([known, self.dims], sort_keys=True).encode())
        for layer in self.folded.layers:
            digest.update(str(layer.activation).encode())
            digest.update(np.ascontiguousarray(layer.weight).tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        kept = self.info.get("kept", {}).get("ratio")
        measured = "" if kept is None else f", keeps {kept:.1%}"
        return f"Bridge({self.width} -> {'/'.join(map(str, self.dims))}{measured})"

    def transform(self, queries: np.ndarray, dim: int | None = None) -> np.ndarray:
        """Map queries of the new model into the old space.

        Args:
            queries: ``(n, D)`` or ``(D,)``, any float type; lengths do not matter.
            dim: Size wanted: one of :attr:`dims`, the widest by default.

        Returns:
            ``(n, dim)`` or ``(dim,)`` float32 of length 1: search the old documents with them.

        Raises:
            DataError: If the width is not :attr:`width`, a row is zero, NaN or infinite, or there is no such size.
        """
        dim = self.dims[0] if dim is None else dim
        if dim not in self.dims:
            raise DataError(f"`dim` must be one of {', '.join(map(str, self.dims))}, got {dim}.")
        table, shape = check_table(queries, self.width)
        if len(table) == 0:
            return np.empty((*shape, dim), dtype=np.float32)
        rows = unit_rows(check_vectors(table, "query"))
        rows = np.concatenate([rows, np.ones((len(rows), 1), dtype=np.float32)], axis=1)
        return unit_rows(self.folded.compress(rows)[:, :dim]).reshape(*shape, dim)

    def check(self, record: Mapping[str, Any], name: str) -> None:
        """Refuse queries whose source records another model, revision or prompt than the new one.

        Raises:
            DataError: If both sides record a fact and the values differ.
        """
        check_backbone(self.info.get("new") or {}, record, name, "this bridge reads queries of")

    # -- make and keep ------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        old_corpus: ArrayLike,
        old_queries: ArrayLike,
        new_corpus: ArrayLike,
        new_queries: ArrayLike,
        qrels: Judgements | None = None,
        *,
        compressor: Compressor | None = None,
        share: float = 0.0,
        least: float = LEAST,
        own_document: ArrayLike | None = None,
        old: Mapping[str, Any] | None = None,
        new: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> Bridge:
        """Learn from texts that both models have embedded, and measure on queries that are held out.

        Args:
            old_corpus: ``(n, D_old)``, documents as the old model gives them, before compression.
            old_queries: ``(q, D_old)``; 20 at least.
            new_corpus: The same documents by the new model, ``(n, D)``.
            new_queries: The same queries by the new model, ``(q, D)``.
            qrels: Judgements by row, as for :meth:`Compressor.fit`; None to count the ten documents that the old model
                finds as relevant.
            compressor: What the stored vectors were compressed with; None if they are as the old model gives them.
            share: Part of the store's documents that the sample holds, in [0, 1]. What is measured depends on it: a
                query is mapped much better if the sample holds the document that it asks for.
            least: Part of the old model's nDCG@10 that must be kept.
            own_document: Document that is the query itself, -1 for none, ``(q,)``.
            old: What is known of the old model (``model``, ``revision``, ``prompt``); by default what ``compressor``
                records.
            new: What is known of the new model.
            seed: Random seed.

        Raises:
            DataError: If rows do not pair up, too few queries are given, or less than ``least`` is kept.
        """
        from smec_st.fitting.bridge import Sample, fit_bridge

        if not 0 <= share <= 1:
            raise DataError(f"`share` is the part of the store that the sample holds, from 0 to 1; got {share}.")
        if not 0 <= least:
            raise DataError(f"`least` must be 0 or more, got {least}.")
        tables = _checked_pairs(old_corpus, old_queries, new_corpus, new_queries)
        old = {**((compressor.info.get("backbone") or {}) if compressor else {}), **(old or {})}
        spaces, sizes = [unit_rows(table) for table in tables[:2]], tuple(tables[0].shape[1:])
        if compressor is not None:
            check_backbone(compressor.info.get("backbone") or {}, old, "the old vectors")
            if tables[0].shape[1] != compressor.width:
                raise DataError(
                    f"old vectors are {tables[0].shape[1]} wide; the compressor reads {compressor.width}. Give them "
                    "as the old model makes them, before compression."
                )
            sizes = compressor.nested_dims
            spaces = [compressor.transform(table, sizes[0]) for table in tables[:2]]
        own = as_own_document(own_document, len(tables[1]), len(tables[0]))
        judged = None if qrels is None else as_qrels(qrels, len(tables[1]), len(tables[0])).without_own(own)
        sample = Sample(spaces[0], unit_rows(tables[2]), spaces[1], unit_rows(tables[3]), sizes, share, own)
        fitted = fit_bridge(sample, judged, seed)
        if fitted.kept.ratio < least:
            raise DataError(
                f"this bridge would keep {fitted.kept.ratio:.1%} of the old model's {fitted.kept.metric} "
                f"({fitted.kept.queries} held-out queries), less than {least:.1%}: embed a larger sample with both "
                "models, or re-embed all documents."
            )
        info = {
            "old": old,
            "new": dict(new or {}),
            "space": None if compressor is None else compressor.fingerprint,
            "documents": len(tables[0]),
            "queries": len(tables[1]),
            "share": share,
            "seed": seed,
            "decision": fitted.decision.to_dict(),
            "kept": fitted.kept.to_dict(),
        }
        return cls(fitted.folded, sizes, info)

    def save(self, folder: str | Path) -> None:
        """Write ``bridge.json`` and ``bridge.safetensors`` into a new or empty folder, which appears complete.

        Raises:
            FileExistsError: If the folder holds something.
        """
        from safetensors.numpy import save_file

        tensors = {f"{number}.weight": layer.weight for number, layer in enumerate(self.folded.layers)}
        config = {
            "format": FORMAT,
            "smec_st_version": __version__,
            "fingerprint": self.fingerprint,
            "width": self.width,
            "dims": list(self.dims),
            "activations": [layer.activation for layer in self.folded.layers],
            "info": self.info,
        }
        with new_folder(folder) as draft:
            save_file({name: np.ascontiguousarray(weight) for name, weight in tensors.items()}, draft / WEIGHTS_FILE)
            (draft / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Bridge:
        """Read what :meth:`save` wrote; needs numpy alone.

        Raises:
            DataError: If the folder holds no bridge, a newer format, or weights that do not fit.
        """
        folder = Path(os.path.expanduser(folder))
        path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        if not path.is_file():
            raise DataError(f"{folder} holds no bridge (no {CONFIG_FILE}).")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            if config["format"] > FORMAT:
                raise DataError(
                    f"{path} was written by a newer smec-st ({config['smec_st_version']}); upgrade to read it."
                )
            names = [f"{number}.weight" for number in range(len(config["activations"]))]
            unknown = [each for each in config["activations"] if each is not None and each not in ACTIVATIONS]
            if unknown or not names:
                raise DataError(f"{path} is damaged: no layers, or unknown activations {some(unknown)}.")
            tensors = read_safetensors(weights, names)
            layers = [
                Layer(tensors[name], activation) for name, activation in zip(names, config["activations"], strict=True)
            ]
            bridge = cls(FoldedMap(tuple(layers)), config["dims"], config["info"])
            is_whole = bridge.fingerprint == config["fingerprint"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is damaged: {one_line(error)}") from error
        if not is_whole:
            raise DataError(
                f"{folder}: {WEIGHTS_FILE} and {CONFIG_FILE} do not belong together (fingerprints differ)."
            )
        return bridge


def _checked_pairs(
    old_corpus: ArrayLike, old_queries: ArrayLike, new_corpus: ArrayLike, new_queries: ArrayLike
) -> list[np.ndarray]:
    """Return the four tables as arrays; refuse them if rows do not pair up, or sides of a model differ in width."""
    given = {
        "old document": old_corpus,
        "old query": old_queries,
        "new document": new_corpus,
        "new query": new_queries,
    }
    tables = [check_vectors(rows, what) for what, rows in given.items()]
    for side, one, other in (("documents", *tables[::2]), ("queries", *tables[1::2])):
        if len(one) != len(other):
            raise DataError(
                f"{side} of both models must be the same texts in the same order; the old model has {len(one)} "
                f"and the new one {len(other)}."
            )
    for name, (corpus, queries) in (("old", tables[:2]), ("new", tables[2:])):
        if corpus.shape[1] != queries.shape[1]:
            raise DataError(
                f"{name} queries are {queries.shape[1]} wide and {name} documents {corpus.shape[1]}; both must "
                "come from the same model."
            )
    return tables
