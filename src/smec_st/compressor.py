"""``Compressor``: fit on vectors, transform vectors, save, load, and hand back an ordinary model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from smec_st import __version__
from smec_st.data import DataError, VectorTable, as_numpy, as_qrels, read_safetensors, unit_rows
from smec_st.data.embedding import embed_if_texts
from smec_st.files import new_folder
from smec_st.stages import check_dims, default_dims

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from smec_st.config import FitConfig
    from smec_st.folding import FoldedMap
    from smec_st.hub.evidence import Evidence

CONFIG_FILE = "compressor.json"
WEIGHTS_FILE = "compressor.safetensors"
FORMAT = 1

Vectors = TypeVar("Vectors", np.ndarray, "Tensor")


class Compressor:
    """Maps a backbone's vectors to any of its sizes, unit norm at each.

    Made by :meth:`fit` or :meth:`load`; never half-made. With the order ``grow`` one map serves all sizes and the
    first ``m`` numbers are the ``m``-dimensional vector ("nested").

    Args:
        maps: Folded maps and the sizes each serves.
        info: What is known of the fit: backbone, method, settings, stages.
    """

    def __init__(self, maps: Sequence[tuple[FoldedMap, Sequence[int]]], info: Mapping[str, Any] | None = None) -> None:
        self._maps = tuple((folded, tuple(sizes)) for folded, sizes in maps)
        self._by_dim = {dim: folded for folded, sizes in self._maps for dim in sizes}
        if not self._by_dim or len({folded.in_dim for folded, _ in self._maps}) != 1:
            raise ValueError("A compressor needs at least one map, all reading the same width.")
        self.info: dict[str, Any] = dict(info or {})

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Width ``D`` of the vectors it reads."""
        return self._maps[0][0].in_dim

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes it was trained for, falling."""
        return tuple(sorted(self._by_dim, reverse=True))

    @property
    def nested_dims(self) -> tuple[int, ...]:
        """Sizes that are prefixes of the widest of them, falling."""
        best = max((sizes for _, sizes in self._maps), key=lambda sizes: (len(sizes), max(sizes)))
        return tuple(sorted(best, reverse=True))

    @property
    def is_nested(self) -> bool:
        """Whether all sizes are prefixes of the widest."""
        return self.nested_dims == self.dims

    @property
    def fingerprint(self) -> str:
        """A short hash of backbone and weights: vectors of different fingerprints must not meet in one index."""
        digest = hashlib.sha256(json.dumps(self.info.get("backbone") or {}, sort_keys=True).encode())
        for name, weight in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        sizes = "/".join(map(str, self.dims))
        return f"Compressor({self.width} -> {sizes}, nested={self.is_nested}, method={self.info.get('method')!r})"

    def map_for(self, dim: int | None = None) -> FoldedMap:
        """The folded map to one of :attr:`dims`, or to any prefix when nested; the widest by default.

        Raises:
            ValueError: If no map serves that size.
        """
        if dim is None:
            dim = self.dims[0]
        if dim in self._by_dim:
            return self._by_dim[dim].first(dim)
        if not 1 <= dim <= self.nested_dims[0] or len(self.nested_dims) < 2:
            raise ValueError(f"`dim` must be one of {', '.join(map(str, self.dims))}, got {dim}.")
        return self._by_dim[self.nested_dims[0]].first(dim)

    # -- use ----------------------------------------------------------------------------------------------------------

    def transform(self, vectors: Vectors, dim: int | None = None, chunk: int = 65536) -> Vectors:
        """Compress vectors.

        Args:
            vectors: ``(n, D)`` or ``(D,)``, numpy array, memory map or tensor of any float type; lengths do not
                matter.
            dim: Size wanted: one of :attr:`dims`, or any prefix of a nested compressor. The widest by default.
            chunk: Rows mapped at a time, to bound memory.

        Returns:
            ``(n, dim)`` or ``(dim,)`` float32 of length 1; a tensor for a tensor, otherwise numpy.

        Raises:
            ValueError: If the width is not :attr:`width`, or a row is zero, NaN or infinite.
        """
        if hasattr(vectors, "detach"):
            import torch

            compressed: Any = torch.from_numpy(self.transform(as_numpy(vectors), dim, chunk))
            return compressed.to(vectors.device)  # type: ignore[no-any-return]
        rows = np.asarray(vectors)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.width:
            raise ValueError(f"Vectors must be {self.width} wide, got shape {tuple(rows.shape)}.")
        if rows.dtype.kind != "f":
            raise ValueError(f"Vectors must be floats, got {rows.dtype}.")
        folded = self.map_for(dim)
        table = rows.reshape(-1, self.width)
        out = np.empty((len(table), folded.out_dim), dtype=np.float32)
        for start in range(0, len(table), chunk):
            part = unit_rows(table[start : start + chunk])
            length = np.linalg.norm(part, axis=1)
            wrong = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
            if len(wrong):
                raise ValueError(f"Row {start + wrong[0]} is zero, NaN or infinite: it has no direction.")
            out[start : start + chunk] = unit_rows(folded(part))
        return cast(Vectors, out.reshape(*rows.shape[:-1], folded.out_dim))

    def attach(self, model: SentenceTransformer | str, dim: int | None = None) -> SentenceTransformer:
        """An ordinary sentence-transformers model: the backbone's modules, then stock ``Dense`` and ``Normalize``.

        Args:
            model: The backbone whose vectors this was fitted on; its modules are shared, not copied.
            dim: Size to serve. By default the widest nested size, to be cut by ``truncate_dim``.

        Raises:
            ValueError: If the backbone's width is not :attr:`width`.
        """
        from smec_st.hub.export import attach

        return attach(self, model, dim)

    def export(
        self, model: SentenceTransformer | str, folder: str | Path, dim: int | None = None, *, onnx: bool = False
    ) -> None:
        """Save :meth:`attach` as a model folder that plain sentence-transformers, 5.2 or later, loads.

        Args:
            model: The backbone whose vectors this was fitted on.
            folder: New or empty folder.
            dim: The one size to serve; all nested ones by default.
            onnx: Write ``onnx/model.onnx`` as well, backbone and compressor in one graph.
        """
        from smec_st.hub.export import export

        export(self, model, folder, dim, onnx)

    def push_to_hub(
        self,
        repo_id: str,
        model: SentenceTransformer | str | None = None,
        *,
        dim: int | None = None,
        private: bool | None = None,
        token: str | None = None,
        overwrite: bool = False,
        revision: str | None = None,
        per_size: str | None = None,
        message: str | None = None,
        evidence: Evidence | None = None,
        license: str | None = None,
    ) -> str:
        """Publish on the Hugging Face Hub: folded into its backbone, or by itself when no ``model`` is given.

        Everything is safetensors. Each revision is one commit and ``main`` moves last; what a failed push has created
        is removed again.

        Args:
            repo_id: ``owner/name``.
            model: The backbone, to publish :meth:`export`'s model, which loads without this package. None publishes
                the compressor alone, a few MB, for :meth:`from_pretrained`.
            dim: The one size to publish; all nested ones by default (all, without a model).
            private: Make a new repository private.
            token: Access token; by default the one that is logged in.
            overwrite: Whether a repository that holds something may be changed.
            revision: Branch to publish on; ``main`` by default.
            per_size: ``branches`` or ``tags``: a revision ``dim-48`` for each size as well, which holds that one size.
            message: Of the commits.
            evidence: Measurements for the model card.
            license: The Hub's short name of the licence, for the card.

        Returns:
            The address of the commit.

        Raises:
            DataError: If the Hub refuses or the upload breaks; the message says what to do and what remains there.
        """
        from smec_st.hub.push import push

        return push(
            self,
            repo_id,
            model,
            dim=dim,
            private=private,
            token=token,
            overwrite=overwrite,
            revision=revision,
            per_size=per_size,
            message=message,
            evidence=evidence,
            license=license,
        )

    # -- make ---------------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        corpus: Any,
        queries: Any | None = None,
        qrels: Any | None = None,
        dims: Sequence[int] | None = None,
        *,
        dev_qrels: Any | None = None,
        model: SentenceTransformer | str | None = None,
        method: str = "smec",
        config: FitConfig | None = None,
        work_dir: str | Path | None = None,
        progress: bool = False,
        unlabelled_queries: Sequence[int] | np.ndarray | None = None,
        own_document: Sequence[int] | np.ndarray | None = None,
        **settings: Any,
    ) -> Compressor:
        """Fit on a corpus, better with queries, best with judgements.

        Args:
            corpus: ``(N, D)`` vectors (array, memory map, tensor), or a list of texts when ``model`` is given.
            queries: ``(Q, D)`` vectors or texts.
            qrels: Which documents are relevant: a :class:`~smec_st.data.Qrels`, ``{query row: {document row:
                grade}}``, or pairs ``(P, 2)`` of rows. None to train without labels.
            dims: Sizes; by default the width and its halvings down to a sixteenth.
            dev_qrels: Judgements of held-out queries for the guard; by default a share of the training queries is
                held out.
            model: The backbone, to embed texts with and to remember by name.
            method: A name in :data:`~smec_st.config.METHODS`.
            config: Settings; ``settings`` override them one by one.
            work_dir: Folder for checkpoints; an unfinished run found there is continued. None to keep none.
            progress: Show a progress bar.
            unlabelled_queries: Without labels, which query rows to train on beside the corpus; all by default.
            own_document: Corpus row that is the query itself, ``(Q,)``, -1 for none (duplicate questions, images among
                images): it counts neither as relevant nor as irrelevant.
            **settings: Fields of :class:`~smec_st.config.FitConfig`.

        Raises:
            DataError: If the input cannot be used; the message says why.
        """
        from smec_st.config import METHODS, FitConfig
        from smec_st.recipe import fit_stages, fit_untrained

        if method not in METHODS:
            raise DataError(f"unknown method {method!r}; known are {', '.join(METHODS)}.")
        settings = {**({} if config is None else config.to_dict()), **METHODS[method], **settings}
        if dims is not None:
            settings["dims"] = tuple(dims)
        corpus, queries, backbone = embed_if_texts(corpus, queries, model, progress)
        table = VectorTable(corpus, queries, own_document)
        try:
            settings["dims"] = check_dims(settings.get("dims") or default_dims(table.width), table.width)
            recipe = FitConfig.from_dict(settings)
        except ValueError as error:
            raise DataError(str(error)) from error
        train = None if qrels is None else as_qrels(qrels, table.query_size, table.corpus_size)
        dev = None if dev_qrels is None else as_qrels(dev_qrels, table.query_size, table.corpus_size)
        if train is not None and dev is None and recipe.guard:
            train, dev = train.hold_out(recipe.held_out_share, recipe.seed)
        if method in ("truncate", "pca"):
            fitted = fit_untrained(method, table, settings["dims"])
        else:
            fitted = fit_stages(
                table,
                train,
                dev,
                recipe,
                unlabelled_queries=None if unlabelled_queries is None else np.asarray(unlabelled_queries),
                work_dir=None if work_dir is None else Path(work_dir),
                progress=progress,
            )
        info = {
            "method": method,
            "backbone": backbone or {"width": table.width},
            "settings": recipe.to_dict(),
            "data": {
                "documents": table.corpus_size,
                "training_queries": 0 if train is None else len(train.query_rows),
                "held_out_queries": 0 if dev is None else len(dev.query_rows),
            },
            "stages": [report.to_dict() for report in fitted.reports],
        }
        return cls(fitted.maps, info)

    def extend(
        self,
        corpus: Any,
        queries: Any | None = None,
        qrels: Any | None = None,
        dims: Sequence[int] = (),
        *,
        dev_qrels: Any | None = None,
        own_document: Sequence[int] | np.ndarray | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Compressor:
        """Add sizes without retraining what exists: every size that was there gives the same vectors as before.

        A size above the widest grows new columns. A smaller or in-between one is a new map on top of the next larger
        size, so it can be computed from stored vectors of that size; it is not a prefix.

        Args:
            corpus: As for :meth:`fit`.
            queries: As for :meth:`fit`.
            qrels: As for :meth:`fit`.
            dims: New sizes.
            dev_qrels: As for :meth:`fit`.
            own_document: As for :meth:`fit`.
            progress: Show a progress bar.
            **settings: Fields of :class:`~smec_st.config.FitConfig`; by default those of the first fit.

        Raises:
            DataError: If a size exists already or the input cannot be used.
        """
        from smec_st.config import FitConfig
        from smec_st.recipe import fit_stages
        from smec_st.stages import Stage, plan_stages

        table = VectorTable(corpus, queries, own_document)
        if table.width != self.width:
            raise DataError(f"the vectors are {table.width} wide; this compressor reads {self.width}.")
        try:
            new = check_dims(dims, self.width)
        except ValueError as error:
            raise DataError(str(error)) from error
        if set(new) & set(self.dims):
            raise DataError(f"size {max(set(new) & set(self.dims))} exists already.")
        config = FitConfig.from_dict({**self.info.get("settings", {}), **settings, "dims": new})
        train = None if qrels is None else as_qrels(qrels, table.query_size, table.corpus_size)
        dev = None if dev_qrels is None else as_qrels(dev_qrels, table.query_size, table.corpus_size)
        maps = list(self._maps)
        reports = list(self.info.get("stages", []))
        above = [dim for dim in new if dim > self.dims[0]]
        if above:
            widest = self.map_for(self.dims[0])
            plan = plan_stages(self.width, above, "grow", config.selection_ratio, have=self.dims[0])
            fitted = fit_stages(table, train, dev, config, base=widest, stages=plan, progress=progress)
            grown = fitted.maps[0][0]
            home = next(i for i, (_, sizes) in enumerate(maps) if self.dims[0] in sizes)
            maps[home] = (grown, (*above, *maps[home][1]))
            reports += [report.to_dict() for report in fitted.reports]
        have = sorted({*self.dims, *above})
        for dim in (dim for dim in new if dim not in above):
            parent = min(size for size in have if size > dim)
            source = next(folded.first(parent) for folded, sizes in maps if parent in sizes)
            stage = Stage(index=0, order="shrink", phase="joint", in_dim=parent, out_dim=dim, candidates=parent)
            shrink = dataclasses.replace(config, order="shrink")
            fitted = fit_stages(table, train, dev, shrink, base=source, stages=(stage,), progress=progress)
            maps.append((fitted.maps[-1][0], (dim,)))
            have.append(dim)
            reports += [report.to_dict() for report in fitted.reports]
        return type(self)(maps, {**self.info, "stages": reports})

    # -- keep ---------------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, np.ndarray]:
        return {
            f"{m}.{n}.weight": layer.weight
            for m, (folded, _) in enumerate(self._maps)
            for n, layer in enumerate(folded.layers)
        }

    def save(self, folder: str | Path) -> None:
        """Write ``compressor.json`` and ``compressor.safetensors``; no backbone, a few MB.

        The folder must be new or empty. It is written under another name first, so it is never there half-written.

        Raises:
            FileExistsError: If the folder holds something.
        """
        with new_folder(folder) as draft:
            self.write_into(draft)

    def write_into(self, folder: Path) -> None:
        """Write the two files into an existing folder."""
        from safetensors.numpy import save_file

        config = {
            "format": FORMAT,
            "smec_st_version": __version__,
            "fingerprint": self.fingerprint,
            "width": self.width,
            "dims": list(self.dims),
            "nested_dims": list(self.nested_dims),
            "maps": [
                {"dims": list(sizes), "layers": [{"activation": layer.activation} for layer in folded.layers]}
                for folded, sizes in self._maps
            ],
            **self.info,
        }
        save_file({k: np.ascontiguousarray(v) for k, v in self._tensors().items()}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Compressor:
        """Read a compressor from the Hugging Face Hub: a head-only repository, or a model that was published whole.

        Args:
            repo_id: ``owner/name``, or a folder.
            revision: Branch, tag or commit.
            token: Access token; by default the one that is logged in.
            cache_dir: Where downloads are kept.
            local_files_only: Use what is there; do not ask the Hub.

        Raises:
            DataError: If there is no such repository or revision, it may not be read, or it holds no compressor.
        """
        from smec_st.hub.load import from_pretrained

        return from_pretrained(
            cls, repo_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )

    @classmethod
    def load(cls, folder: str | Path) -> Compressor:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: If the folder holds no compressor, a newer format, or weights that do not fit.
        """
        from smec_st.folding import FoldedMap, Layer

        folder = Path(folder)
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise DataError(f"{folder} holds no compressor (no {CONFIG_FILE}).")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            if config["format"] > FORMAT:
                raise DataError(
                    f"{path} was written by a newer smec-st ({config['smec_st_version']}); upgrade to read it."
                )
            names = [
                [f"{m}.{n}.weight" for n in range(len(entry["layers"]))] for m, entry in enumerate(config["maps"])
            ]
            tensors = read_safetensors(folder / WEIGHTS_FILE, [name for group in names for name in group])
            maps = [
                (
                    FoldedMap(
                        tuple(
                            Layer(tensors[name], layer["activation"])
                            for name, layer in zip(group, entry["layers"], strict=True)
                        )
                    ),
                    tuple(entry["dims"]),
                )
                for group, entry in zip(names, config["maps"], strict=True)
            ]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
        own = ("format", "smec_st_version", "fingerprint", "width", "dims", "nested_dims", "maps")
        compressor = cls(maps, {name: value for name, value in config.items() if name not in own})
        if compressor.fingerprint != config.get("fingerprint"):
            raise DataError(f"{folder}: weights and {CONFIG_FILE} do not belong together (fingerprints differ).")
        return compressor
