"""``Compressor``: fit on vectors, transform vectors, save, load, and hand back an ordinary model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from smec_st.compressor.files import fingerprint, read_files, write_files
from smec_st.data import Collection, DataError, Qrels, VectorTable, as_numpy, as_qrels
from smec_st.data.embedding import backbone_record, embed_if_texts
from smec_st.data.space import check_backbone
from smec_st.maps import FoldedMap
from smec_st.quantization.codecs import PLAIN, Plain
from smec_st.quantization.head import Head
from smec_st.system.errors import check_seed, count, some, tell, whole_number
from smec_st.system.files import new_folder
from smec_st.system.optional import load_optional

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from smec_st.data.qrels import Judgements
    from smec_st.data.vectors import ArrayLike
    from smec_st.evaluation.limits import Limit
    from smec_st.fitting.config import FitConfig
    from smec_st.hub.evidence import Evidence

Vectors = TypeVar("Vectors", np.ndarray, "Tensor")


class Compressor:
    """Maps a backbone's vectors to any of its sizes, unit norm at each.

    Made by :meth:`fit` or :meth:`load`. With the order ``grow`` one map serves all sizes, and the first ``m`` numbers
    are the ``m``-dimensional vector: the sizes are nested.

    Args:
        maps: Folded maps and the sizes each serves.
        info: What is known of the fit: backbone, method, settings, stages.
        heads: Ways to store documents in fewer bytes per number.
    """

    def __init__(
        self,
        maps: Sequence[tuple[FoldedMap, Sequence[int]]],
        info: Mapping[str, Any] | None = None,
        heads: Sequence[Head] = (),
    ) -> None:
        self.maps = tuple((folded, tuple(sizes)) for folded, sizes in maps)
        self._by_dim = {dim: folded for folded, sizes in self.maps for dim in sizes}
        if not self._by_dim or len({folded.in_dim for folded, _ in self.maps}) != 1:
            raise DataError("A compressor needs at least one map, all reading the same width.")
        if len(self._by_dim) != sum(len(sizes) for _, sizes in self.maps):
            raise DataError("A compressor has one map for each of its sizes; a size is named twice.")
        for folded, sizes in self.maps:
            wrong = [dim for dim in sizes if type(dim) is not int or not 1 <= dim <= folded.out_dim]
            if wrong:
                raise DataError(f"sizes of a map must be whole numbers in [1, {folded.out_dim}], got {some(wrong)}.")
        self.info: dict[str, Any] = dict(info or {})
        self.heads = tuple(heads)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Width ``D`` of the vectors it reads."""
        return self.maps[0][0].in_dim

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes that it was trained for, in descending order."""
        return tuple(sorted(self._by_dim, reverse=True))

    @property
    def nested_dims(self) -> tuple[int, ...]:
        """Sizes that are prefixes of the widest of them, in descending order."""
        best = max((sizes for _, sizes in self.maps), key=lambda sizes: (len(sizes), max(sizes)))
        return tuple(sorted(best, reverse=True))

    @property
    def is_nested(self) -> bool:
        """Whether all sizes are prefixes of the widest."""
        return self.nested_dims == self.dims

    @property
    def fingerprint(self) -> str:
        """A short hash of backbone, maps and sizes: one index holds vectors of one fingerprint."""
        return fingerprint(self)

    def __repr__(self) -> str:
        sizes = "/".join(map(str, self.dims))
        return f"Compressor({self.width} -> {sizes}, nested={self.is_nested}, method={self.info.get('method')!r})"

    def _repr_html_(self) -> str:
        from smec_st.compressor.html import as_html

        return as_html(self.width, self.dims, self.info, self.heads, self.fingerprint)

    def map_for(self, dim: int | None = None) -> FoldedMap:
        """Return the folded map to one of :attr:`dims`, or to any prefix when nested; to the widest by default.

        Raises:
            DataError: If no map serves that size.
        """
        dim = self.dims[0] if dim is None else whole_number(dim, "dim")
        if dim in self._by_dim:
            return self._by_dim[dim].first(dim)
        if not 1 <= dim <= self.nested_dims[0] or len(self.nested_dims) < 2:
            raise DataError(f"`dim` must be one of {', '.join(map(str, self.dims))}, got {dim}.")
        return self._by_dim[self.nested_dims[0]].first(dim)

    # -- use ----------------------------------------------------------------------------------------------------------

    def head(self, dim: int | None = None, precision: str | None = None, bytes: int | None = None) -> Head:
        """Return a way to store documents, which encodes them, maps queries, and scores one against the other.

        Args:
            dim: Size; by default the widest that matches the other arguments.
            precision: "float32", "float16", "int8", "binary" or "pq". By default that of the head of this many
                ``bytes``, or float32.
            bytes: Bytes per document.

        Raises:
            DataError: If there is no such head; the message names those there are.
        """
        dim = None if dim is None else whole_number(dim, "dim")
        bytes = None if bytes is None else whole_number(bytes, "bytes")
        if precision in PLAIN or (precision is None and bytes is None):
            plain = Plain(0, precision or "float32")
            wanted = dim if dim is not None or bytes is None else bytes // np.dtype(plain.precision).itemsize
            folded = self.map_for(wanted)
            found = [Head(folded, dataclasses.replace(plain, dim=folded.out_dim))]
        else:
            found = [head for head in self.heads if dim in (None, head.dim) and precision in (None, head.precision)]
        found = [head for head in found if bytes in (None, head.bytes)]
        if not found:
            have = ", ".join(f"{head.precision} of {head.dim} numbers ({head.bytes} bytes)" for head in self.heads)
            wanted_words = " ".join(filter(None, [f"{dim} numbers" if dim else "", precision or ""]))
            if bytes:
                wanted_words += (" in " if wanted_words else "") + count(bytes, "byte")
            raise DataError(
                f"this compressor has no codes of {wanted_words}; it has {have or 'none'}. "
                "`Compressor.quantize` adds more."
            )
        return max(found, key=lambda head: (bytes is not None and "for_bytes" in head.info, head.dim))

    def transform(
        self,
        vectors: Vectors,
        dim: int | None = None,
        chunk: int = 65536,
        precision: str | None = None,
        bytes: int | None = None,
    ) -> Vectors:
        """Compress vectors.

        Args:
            vectors: ``(n, D)`` or ``(D,)``, numpy array, memory map or tensor of any float type; lengths do not
                matter.
            dim: Size wanted: one of :attr:`dims`, or any prefix of a nested compressor. The widest by default.
            chunk: Rows mapped at a time, to bound memory.
            precision: How documents are stored, see :meth:`head`; float32 by default. Queries stay float32.
            bytes: Bytes per document, instead of ``dim`` and ``precision``.

        Returns:
            ``(n, dim)`` or ``(dim,)`` float32 of length 1, or codes; a tensor for a tensor, otherwise numpy.

        Raises:
            DataError: If the width is not :attr:`width`, or a row is zero, NaN or infinite.
        """
        if hasattr(vectors, "detach"):
            import torch

            compressed: Any = torch.from_numpy(self.transform(as_numpy(vectors), dim, chunk, precision, bytes))
            return compressed.to(vectors.device)  # type: ignore[no-any-return]
        codes: Any = self.head(dim, precision, bytes).encode(np.asarray(vectors), chunk)
        return codes  # type: ignore[no-any-return]

    def attach(self, model: SentenceTransformer | str, dim: int | None = None) -> SentenceTransformer:
        """Make a sentence-transformers model: the backbone's modules, then stock ``Dense`` and ``Normalize``.

        Args:
            model: The backbone whose vectors this was fitted on; its modules are shared, not copied.
            dim: Size to serve. By default the widest nested size, to be cut by ``truncate_dim``.

        Raises:
            ValueError: If the backbone's width is not :attr:`width`, or it is known to be another model or revision.
        """
        from smec_st.hub.export import attach

        self._check_model(model)
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

        self._check_model(model)
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

        All weights are safetensors. Each revision is one commit, and ``main`` moves last. A push that fails removes
        what it created.

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
            message: Message of the commits.
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

    def _check_model(self, model: SentenceTransformer | str) -> None:
        record = {"model": model} if isinstance(model, str) else backbone_record(model)
        check_backbone(self.info.get("backbone") or {}, record, "the model")

    def to_onnx(self, path: str | Path, dim: int | None = None) -> None:
        """Write one size as a tiny ONNX model: ``vectors`` ``(n, D)`` float32 to ``embedding`` ``(n, dim)``.

        Raises:
            DataError: If the package onnx is missing.
        """
        from smec_st.compressor.onnx import write_onnx

        write_onnx(self, Path(path), dim)

    # -- make ---------------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        corpus: ArrayLike,
        queries: ArrayLike | None = None,
        qrels: Judgements | None = None,
        dims: int | Sequence[int] | None = None,
        *,
        dev_qrels: Judgements | None = None,
        model: SentenceTransformer | str | None = None,
        method: str = "smec",
        config: FitConfig | None = None,
        work_dir: str | Path | None = None,
        progress: bool = False,
        unlabelled_queries: ArrayLike | None = None,
        own_document: ArrayLike | None = None,
        backbone: Mapping[str, Any] | None = None,
        bytes: int | Sequence[int] | None = None,
        limit: Limit | None = None,
        target: str | None = None,
        **settings: Any,
    ) -> Compressor:
        """Fit on a corpus; with queries the result is better, and with judgements best.

        Args:
            corpus: ``(N, D)`` vectors (array, memory map, tensor), or a list of texts when ``model`` is given.
            queries: ``(Q, D)`` vectors or texts.
            qrels: Which documents are relevant: a :class:`~smec_st.data.Qrels`, ``{query row: {document row:
                grade}}``, or pairs ``(P, 2)`` of rows. None to train without labels.
            dims: Sizes; by default the width and its halvings down to a sixteenth.
            dev_qrels: Judgements of held-out queries, which only choose among the candidates; by default the training
                queries are cross-validated. With fewer than 20 judged queries nothing is trained on them; a warning
                says so.
            model: The backbone, which embeds texts; its name is recorded.
            method: A name in :data:`~smec_st.fitting.config.METHODS`.
            config: Settings; ``settings`` override them one by one.
            work_dir: Folder for checkpoints. An unfinished run of the same input is continued there, and one of
                another input is refused. None to write no checkpoints.
            progress: Show a progress bar.
            unlabelled_queries: Query rows that may be read without their judgements. By default those that are judged,
                or all if there are no judgements.
            own_document: Row of the document that is the same item as each query, -1 for none, ``(Q,)`` (duplicate
                questions, images among images). It counts neither as relevant nor as irrelevant.
            backbone: Description of the model that made the vectors (``model``, ``revision``, ``prompt``), if
                ``model`` is not given.
            bytes: Also choose the best size and precision for documents of this many bytes, or of each of several
                numbers of bytes; see :meth:`quantize`.
            limit: What that size and precision must keep to. Without ``bytes``, the best that keeps to it is chosen.
            target: Also find the fewest bytes that keep a quality, over sizes and precisions: ``"lossless"``, or
                ``"ndcg@10 >= 0.99 original"``. ``dev_qrels``, or a fifth of the training queries, are then withheld
                from the fit and used only for the test; ``info["target"]`` holds the answer.
            **settings: Fields of :class:`~smec_st.fitting.config.FitConfig`.

        Raises:
            DataError: If the input cannot be used; the message says why.
        """
        load_optional("torch", "fitting")
        from smec_st.evaluation.target import Target, choose_size, hold_out_for_test
        from smec_st.fitting.config import HELD_OUT, settings_of
        from smec_st.fitting.fit import claim_work_dir, fit_maps, resolve_config
        from smec_st.quantization.pairs import bytes_to_test, pairs_to_try

        if backbone is not None and not isinstance(backbone, Mapping):
            raise DataError(f"`backbone` is a dict, such as {{'model': 'the-api/model'}}; got {backbone!r:.60}.")
        if backbone and backbone.get("fingerprint"):
            raise DataError(f"these vectors are compressed already (by {backbone['fingerprint']}); fit the originals.")
        given = {**({} if config is None else config.to_dict()), **settings_of(method), **settings}
        if dims is not None:
            given["dims"] = _as_tuple(dims)
        corpus, queries, known = embed_if_texts(corpus, queries, model, progress)
        table = VectorTable(corpus, queries, own_document)
        resolved = resolve_config(given, table.width)
        sizes = resolved.dims or ()
        train, dev = _judgements(table, qrels, dev_qrels)
        if train is not None and dev is not None:
            train = _trained_only(train, dev)
        aim, tested_by = None if target is None else Target.parse(target), None
        if aim is not None:
            (train, tested_by), dev = hold_out_for_test(train, dev), None
        budgets = _budgets(bytes, limit)
        if aim is not None and not any(budgets):
            budgets = bytes_to_test(sizes, limit) or budgets
        for budget in budgets:
            pairs_to_try(sizes, sizes, limit, budget)  # refuses what cannot be stored before a fit of minutes
        if budgets and train is not None and dev is None:
            train, dev = train.hold_out(HELD_OUT, resolved.seed)  # codes are chosen on queries that trained no map
        unlabelled = None if unlabelled_queries is None else _query_rows(unlabelled_queries, table.query_size)
        work = None if work_dir is None else Path(work_dir)
        if work is not None:
            claim_work_dir(work, table, (train, dev), unlabelled, {**resolved.to_dict(), "method": method})
        made = fit_maps(
            method, table, train, dev, resolved, unlabelled_queries=unlabelled, work_dir=work, progress=progress
        )
        backbone = {**(known or {"width": table.width}), **(backbone or {})}
        compressor = cls(made.maps, {"backbone": backbone, **made.info})
        compressor = compressor.calibrate(table.documents(), table.some_queries(unlabelled))
        labels = train if made.trains_on_labels else None
        if unlabelled is None and train is not None:
            unlabelled = train.query_rows
        compressor = compressor._with_best(table, labels, dev, budgets, limit, resolved.seed, unlabelled)
        if aim is not None and tested_by is not None and queries is not None:
            own = np.empty(0, dtype=np.int64) if own_document is None else as_numpy(own_document)
            given_vectors = Collection("", as_numpy(corpus), as_numpy(queries), [], [], {}, own, backbone)
            choice = choose_size(aim, compressor, given_vectors, tested_by, limit=limit)
            compressor.info["target"] = choice.to_dict()
        return compressor

    def calibrate(self, corpus: np.ndarray, queries: np.ndarray | None = None) -> Compressor:
        """Add ranges for int8 and rotations for binary codes at every size that has none.

        The share of neighbours that each size keeps is recorded as well, for ``smec-st check``.

        Args:
            corpus: ``(N, D)`` vectors, of which a sample is used.
            queries: ``(Q, D)`` vectors, of which a sample is used; None leaves the record of queries as it is.

        Returns:
            A copy with the new heads.
        """
        from smec_st.evaluation.overlap import kept_by_pool
        from smec_st.quantization.starts import untrained_heads

        maps = {dim: self.map_for(dim) for dim in self.dims}
        kept = {"kept_neighbors": kept_by_pool(corpus, maps)}
        if queries is not None:
            kept["kept_query_neighbors"] = kept_by_pool(queries, maps)
        heads = (*self.heads, *untrained_heads(self, corpus))
        return type(self)(self.maps, {**self.info, **kept}, heads)

    def quantize(
        self,
        corpus: ArrayLike,
        queries: ArrayLike | None = None,
        qrels: Judgements | None = None,
        *,
        bytes: int | Sequence[int] | None = None,
        limit: Limit | None = None,
        dev_qrels: Judgements | None = None,
        own_document: ArrayLike | None = None,
        seed: int = 0,
    ) -> Compressor:
        """Add the best way to store documents in this many bytes, or within a limit, as the last of :attr:`heads`.

        Every size is tried with every precision that takes this many bytes, and the best is trained through the
        rounding. Held-out queries choose; without judgements, the choice is by the share of the ten nearest documents,
        by the compressor's widest float vectors, that are still found.

        Args:
            corpus: As for :meth:`fit`.
            queries: As for :meth:`fit`.
            qrels: Training judgements; a tenth is held out to choose, unless ``dev_qrels`` is given. They may have
                trained the map, so give ``dev_qrels`` that have not.
            bytes: Bytes per document; of several numbers, each gets its best way. None for what the limit allows.
            limit: What the size and the precision must keep to.
            dev_qrels: As for :meth:`fit`.
            own_document: As for :meth:`fit`.
            seed: Random seed.

        Raises:
            DataError: If no size of this compressor fits, or the input cannot be used.
        """
        budgets = _budgets(bytes, limit)
        if not budgets:
            raise DataError("`quantize` needs a number of bytes or a limit.")
        load_optional("torch", "fitting")
        from smec_st.fitting.config import HELD_OUT

        table, seed = self._table(corpus, queries, own_document), check_seed(seed)
        train, dev = _judgements(table, qrels, dev_qrels)
        if train is not None and dev is None:
            train, dev = train.hold_out(HELD_OUT, seed)
        return self._with_best(table, train, dev, budgets, limit, seed)

    def _with_best(
        self,
        table: VectorTable,
        train: Qrels | None,
        dev: Qrels | None,
        budgets: Sequence[int | None],
        limit: Limit | None,
        seed: int,
        unlabelled: np.ndarray | None = None,
    ) -> Compressor:
        """Add the best head for each number of bytes; see :func:`~smec_st.quantization.choice.add_best`."""
        from smec_st.quantization.choice import add_best

        made = self
        for budget in budgets:
            made = add_best(made, table, train, dev, budget, seed, unlabelled, None, limit)
        return made

    def extend(
        self,
        corpus: ArrayLike,
        queries: ArrayLike | None = None,
        qrels: Judgements | None = None,
        dims: Sequence[int] = (),
        *,
        own_document: ArrayLike | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Compressor:
        """Add sizes without retraining what exists: existing sizes give the same vectors as before.

        A size above the widest grows new columns. A smaller or in-between one is a new map on top of the next larger
        size, so it can be computed from stored vectors of that size; it is not a prefix.

        Args:
            corpus: As for :meth:`fit`.
            queries: As for :meth:`fit`.
            qrels: As for :meth:`fit`.
            dims: New sizes.
            own_document: As for :meth:`fit`.
            progress: Show a progress bar.
            **settings: Fields of :class:`~smec_st.fitting.config.FitConfig`; by default those of the first fit.

        Raises:
            DataError: If a size exists already, the compressor has a hidden layer, or the input cannot be used.
        """
        load_optional("torch", "fitting")
        from smec_st.fitting.fit import extend_maps, resolve_config

        table = self._table(corpus, queries, own_document)
        config = resolve_config({**self.info.get("settings", {}), **settings, "dims": tuple(dims)}, self.width)
        train, _ = _judgements(table, qrels, None)
        maps, reports = extend_maps(self.maps, table, train, config, progress)
        info = {**self.info, "stages": [*self.info.get("stages", []), *reports]}
        return type(self)(maps, info, self.heads).calibrate(table.documents(), table.some_queries())

    def _table(self, corpus: ArrayLike, queries: ArrayLike | None, own_document: ArrayLike | None) -> VectorTable:
        table = VectorTable(corpus, queries, own_document)
        if table.width != self.width:
            raise DataError(f"the vectors are {table.width} wide; this compressor reads {self.width}.")
        return table

    # -- keep ---------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the weights of the maps by name, ``MAP.LAYER.weight``."""
        return {
            f"{m}.{n}.weight": layer.weight
            for m, (folded, _) in enumerate(self.maps)
            for n, layer in enumerate(folded.layers)
        }

    def save(self, folder: str | Path) -> None:
        """Write ``compressor.json`` and ``compressor.safetensors``; no backbone, a few MB.

        The folder must be new or empty. It appears only when it is complete.

        Raises:
            FileExistsError: If the folder holds something.
        """
        with new_folder(folder) as draft:
            self.write_into(draft)

    def write_into(self, folder: Path) -> None:
        """Write the two files into an existing folder."""
        write_files(self, folder)

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
        """Read a compressor from the Hugging Face Hub: a repository of a compressor alone, or of a whole model.

        Args:
            repo_id: ``owner/name``, or a folder.
            revision: Branch, tag or commit.
            token: Access token; by default the one that is logged in.
            cache_dir: Folder of downloads.
            local_files_only: Use the local cache only.

        Raises:
            DataError: If there is no such repository or revision, it may not be read, or it holds no compressor.
        """
        from smec_st.hub.load import compressor_folder

        folder = compressor_folder(
            repo_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.load(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Compressor:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: If the folder holds no compressor, a newer format, or weights that do not fit.
        """
        return read_files(Path(folder), cls)


def _budgets(bytes: int | Sequence[int] | None, limit: Limit | None) -> tuple[int | None, ...]:
    """Numbers of bytes to choose a way for; None stands for what the limit allows."""
    from smec_st.evaluation.limits import Limit

    if limit is not None and not isinstance(limit, Limit):
        raise DataError(f"`limit` takes a Limit, such as Limit('pgvector', bytes=40), got {limit!r}.")
    if bytes is None:
        return () if limit is None else (None,)
    numbers = bytes if isinstance(bytes, Iterable) and not isinstance(bytes, str) else (bytes,)
    return tuple(whole_number(number, "bytes") for number in numbers)


def _judgements(table: VectorTable, train: Any, dev: Any) -> tuple[Qrels | None, Qrels | None]:
    size = table.query_size, table.corpus_size
    return (None if train is None else as_qrels(train, *size)), (None if dev is None else as_qrels(dev, *size))


def _trained_only(train: Qrels, dev: Qrels) -> Qrels:
    """Training judgements without the queries that choose."""
    shared = np.intersect1d(train.query_rows, dev.query_rows)
    if len(shared) == len(train.query_rows) > 0:
        raise DataError("`dev_qrels` judges all queries that should be trained on; give judgements of other queries.")
    if len(shared):
        tell(f"{len(shared)} of the training queries are among `dev_qrels`; they choose, and are not trained on.")
    return train.of_queries(np.setdiff1d(train.query_rows, shared))


def _query_rows(rows: ArrayLike, queries: int) -> np.ndarray:
    """Rows of queries that were named by their numbers, ``(q,)`` int64."""
    found = as_numpy(rows)
    if found.ndim != 1 or found.size and found.dtype.kind not in "iu":
        raise DataError(
            f"`unlabelled_queries` are row numbers of queries, (q,) whole numbers; got {found.shape} {found.dtype}."
        )
    wrong = found[(found < 0) | (found >= queries)]
    if len(wrong):
        raise DataError(f"`unlabelled_queries` names query row {wrong[0]}; there are {queries}.")
    return found.astype(np.int64)


def _as_tuple(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(numbers) if isinstance(numbers, Iterable) else (numbers,)
