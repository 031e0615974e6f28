"""``FunnelIndex``: search all rows at the smallest size, then rescore a shrinking shortlist at each larger size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from smec_st.compressor import Compressor
from smec_st.compressor.space import check_space
from smec_st.data import DataError, VectorSource, check_vectors
from smec_st.search.backend import Backend, Columns, Ids, Settings
from smec_st.search.build import BuildOptions, BuildProgress, build
from smec_st.search.checks import ADD_ROWS, Documents, as_ids, new_settings
from smec_st.search.encoding import document_widths, encode_documents, encode_queries, steps_for, wrong_width
from smec_st.search.engines import create_backend, open_backend
from smec_st.search.filters import Where
from smec_st.search.heads import codes_of
from smec_st.search.schedule import Schedule
from smec_st.search.steps import Hits, run_in_blocks
from smec_st.search.tuning import tune
from smec_st.system.errors import some, whole_number

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Progress = Callable[[int], object]


class FunnelIndex:
    """An index of documents that is searched as a funnel over the sizes of a compressor.

    The URI chooses the engine: a name that ends in ``.db`` is a file of Milvus Lite, ``http://host:19530`` is a Milvus
    server or cluster, and any other name is a folder that FAISS searches in this process. Use :meth:`build`,
    :meth:`create` or :meth:`open` to make one.

    The last step ranks by the originals, so results approach exact search over the vectors you had. To rank by the
    compressed vectors instead, keep no originals. This is often better if the map was learned from labels.

    Args:
        backend: The engine.
        compressor: The compressor that the index was made with.
        model: Sentence-transformers model, or its id, that embeds queries given as text.
    """

    def __init__(
        self, backend: Backend, compressor: Compressor, model: SentenceTransformer | str | None = None
    ) -> None:
        self._backend = backend
        self._compressor = compressor
        self._model = model

    # -- make and open ------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        uri: str | Path,
        compressor: Compressor,
        *,
        dims: Sequence[int] | None = None,
        head: str = "hnsw-int8",
        originals: str | None = "float32",
        id_type: str = "int",
        fields: Mapping[str, str] | None = None,
        model: SentenceTransformer | str | None = None,
        schedule: Schedule | None = None,
    ) -> FunnelIndex:
        """Create a new, empty index.

        Args:
            uri: Folder, file or server, see the class.
            compressor: Maps vectors to the sizes.
            dims: Sizes of the compressor to store; by default all that are smaller than full width.
            head: ``flat``, ``hnsw`` or ``ivf``, each also with ``-float16``, ``-int8``, ``-int4`` or ``-pq`` vectors;
                or ``codes:12``, the codes of 12 bytes that ``Compressor.quantize`` made.
            originals: ``float32`` or ``float16`` to keep the originals on disk, memory-mapped; None to keep none.
            id_type: ``int`` or ``str``.
            fields: Scalar fields to filter by: name to ``int``, ``float``, ``str`` or ``bool``.
            model: Embeds queries given as text.
            schedule: How to search; by default a generic schedule until :meth:`tune` chooses one from data.

        Raises:
            DataError: If an option is unknown, or an index of the same compressor exists at the URI.
        """
        settings = new_settings(
            compressor, dims, originals, schedule, head=head, id_type=id_type, fields=dict(fields or {})
        )
        return cls(create_backend(str(uri), settings, compressor), compressor, model)

    @classmethod
    def open(
        cls,
        uri: str | Path,
        compressor: Compressor | None = None,
        *,
        model: SentenceTransformer | str | None = None,
    ) -> FunnelIndex:
        """Open an existing index.

        Args:
            uri: Folder, file or server, see the class.
            compressor: Needed only to choose among several indexes of one Milvus database, since an index stores its
                compressor. If given, the index must have been made with it.
            model: Embeds queries given as text.

        Raises:
            DataError: If there is no index, or it is damaged or incomplete, or was made with another compressor.
        """
        backend = open_backend(str(uri), None if compressor is None else compressor.fingerprint)
        settings = backend.settings
        try:
            if compressor is not None and compressor.fingerprint != settings.fingerprint:
                raise DataError(
                    f"{uri} was made with the compressor {settings.fingerprint}, not {compressor.fingerprint}: "
                    "vectors of the two cannot be mixed."
                )
            if settings.building:
                raise DataError(
                    f"{uri} was interrupted while it was built ({len(backend)} of {settings.building} rows); "
                    "build it again with the same input to continue."
                )
            if settings.codes:  # the fingerprint does not cover codes, so those of the index count
                compressor = backend.compressor()
            return cls(backend, compressor or backend.compressor(), model)
        except BaseException:
            backend.close()
            raise

    @classmethod
    def build(
        cls,
        uri: str | Path,
        compressor: Compressor,
        vectors: ArrayLike,
        *,
        ids: Ids | None = None,
        fields: Columns | None = None,
        queries: ArrayLike | None = None,
        recall: float = 0.99,
        k: int = 10,
        dims: Sequence[int] | None = None,
        head: str = "hnsw-int8",
        originals: str | None = "float32",
        model: SentenceTransformer | str | None = None,
        progress: BuildProgress | None = None,
    ) -> FunnelIndex:
        """Create an index, add all vectors, and choose its schedule from them.

        The same call continues a build that was interrupted.

        Args:
            uri: Folder, file or server, see the class.
            compressor: Maps vectors to the sizes.
            vectors: ``(N, D)`` originals; a memory map is read in pieces.
            ids: As in :meth:`add`.
            fields: As in :meth:`add`; their types are inferred from their values.
            queries: ``(Q, D)`` queries to choose the schedule on; by default documents.
            recall: Recall@k of exact full-width search that the schedule must reach.
            k: Number of results per query that the schedule is chosen for.
            dims: Sizes to store; by default those of the cheapest schedule on a sample.
            head: See :meth:`create`.
            originals: See :meth:`create`.
            model: Embeds queries given as text.
            progress: Called with the name of a stage, rows done and rows in total.

        Raises:
            DataError: If the input cannot be used, or another index exists at the URI.
        """
        options = BuildOptions(recall, k, dims, head, originals)
        backend = build(uri, compressor, vectors, options, ids=ids, fields=fields, queries=queries, progress=progress)
        return cls(backend, backend.compressor() if backend.settings.codes else compressor, model)

    def check(self, source: VectorSource, sizes: Sequence[int] = ()) -> None:
        """Refuse a source of vectors that records another space than that of this index.

        Args:
            source: Vectors to add or to search with, see :func:`~smec_st.data.open_vectors`.
            sizes: Sizes at which they may come compressed already, by the compressor of this index.

        Raises:
            DataError: If the width, the model, its revision or its prompt differs, or another compressor made them.
        """
        check_space(self._compressor, source.width, source.record, source.name, sizes)

    def close(self) -> None:
        """Release files, locks and connections."""
        self._backend.close()

    def __enter__(self) -> FunnelIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- properties ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._backend)

    @property
    def uri(self) -> str:
        """The folder, file or server."""
        return self._backend.uri

    @property
    def settings(self) -> Settings:
        """What is stored, and how it is searched."""
        return self._backend.settings

    @property
    def schedule(self) -> Schedule:
        """How it is searched."""
        return self._backend.settings.schedule

    @property
    def compressor(self) -> Compressor:
        """The compressor that it was made with."""
        return self._compressor

    def bytes(self) -> dict[str, Any]:
        """Return the bytes of every part, originals included.

        Returns:
            ``ram`` and ``disk``, each with its parts and ``total``, or None where a server does not report it; the
            bytes per row of both; and ``full_width_ram``, what plain float32 vectors in memory would take.
        """
        parts = self._backend.bytes()
        rows = len(self)
        report: dict[str, Any] = {"rows": rows, "full_width_ram": 4 * self.settings.width * rows}
        for kind in ("ram", "disk"):
            sizes = parts.get(kind)
            report[kind] = None if sizes is None else {**sizes, "total": sum(sizes.values())}
            if sizes is not None and rows:
                report[f"{kind}_per_row"] = sum(sizes.values()) / rows
        return report

    # -- change -------------------------------------------------------------------------------------------------------

    def add(
        self,
        vectors: ArrayLike,
        ids: Ids | None = None,
        fields: Columns | None = None,
        *,
        replace: bool = False,
        fingerprint: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Add rows in batches of 65,536.

        Each batch (in Milvus, each request of 16 MB) is added as a whole or not at all.

        Args:
            vectors: ``(n, D)`` originals of any float type, also memory-mapped. An index without originals also
                accepts ``(n, m)`` vectors that are compressed to its widest size.
            ids: ``n`` ids; None numbers the rows of an empty index from 0.
            fields: ``n`` values of each scalar field, None where a value is missing.
            replace: Whether to replace rows with the same ids.
            fingerprint: Fingerprint of the caller's compressor, to check that it is that of the index.
            progress: Called with the number of rows of each batch that was added.

        Raises:
            DataError: If vectors have another width or fingerprint or hold NaN, ids are repeated or exist already,
                a field is unknown, or the disk is full. Batches that were added before stay.
        """
        self._check_fingerprint(fingerprint)
        table = check_vectors(vectors, "document")
        accepted = document_widths(self.settings)
        if table.shape[1] not in accepted:
            raise wrong_width("document", table.shape[1], accepted)
        if ids is None:
            if len(self) or self.settings.id_type == "str":
                raise DataError("give ids: only the rows of an empty index with int ids are numbered automatically.")
            ids = range(len(table))
        documents = Documents.check(table, ids, fields or {}, self.settings.id_type, self.settings.fields)
        for part in documents.parts(ADD_ROWS):
            self._backend.add(encode_documents(self.settings, self._compressor, part), replace)
            if progress is not None:
                progress(len(part))

    def delete(self, ids: Ids) -> int:
        """Remove rows by id and return how many were removed; unknown ids are ignored."""
        return self._backend.delete(as_ids(ids, self.settings.id_type))

    def tune(
        self,
        queries: ArrayLike | None = None,
        *,
        recall: float = 0.99,
        k: int = 10,
        progress: Progress | None = None,
    ) -> Schedule:
        """Choose a schedule for the current rows, measure it, and store it.

        Args:
            queries: ``(Q, D)`` queries like those to come. By default documents serve as queries, which may be easier.
            recall: Recall@k of exact full-width search; the lower end of a 95 % interval must reach it.
            k: Number of results per query.
            progress: Called with the number of rows read, in two passes over all rows.
        """
        schedule = tune(self._backend, self._compressor, queries, target=recall, k=k, progress=progress)
        self._backend.save_settings(dataclasses.replace(self.settings, schedule=schedule))
        return schedule

    def narrow(self, uri: str | Path, size: int, head: str | None = None) -> FunnelIndex:
        """Copy the vectors up to one size, the ids and the fields, but not the originals, to a place with less room.

        Keep the wide index where documents are processed, and the narrow copy where queries arrive. Both accept the
        same queries. The narrow copy ranks by its widest size; the wide index can rescore its results.

        Args:
            uri: URI of the copy, for any engine.
            size: Widest size to copy, one of :attr:`Settings.sizes`.
            head: Kind of its head; by default that of this index.
        """
        settings = self.settings
        if size not in settings.sizes:
            raise DataError(f"the index has the sizes {some(settings.sizes, 9) or 'none'}, not {size}.")
        if codes_of(head or settings.head):
            raise DataError("a narrow copy searches vectors, since codes are made of originals: give another head.")
        copy = FunnelIndex.create(
            uri,
            self._compressor,
            dims=[each for each in settings.sizes if each <= size],
            head=head or settings.head,
            originals=None,
            id_type=settings.id_type,
            fields=settings.fields,
            model=self._model,
        )
        reader = self._backend.reader()
        for keys, vectors in reader.scan((size,)):
            ids = reader.ids(keys, np.ones(keys.shape, dtype=bool))
            copy.add(vectors[size], ids, reader.fields(keys), fingerprint=settings.fingerprint)
        copy.flush()
        return copy

    def refresh(self) -> bool:
        """Load what other processes have written, and return whether anything changed.

        An open folder shows the state when it was opened, until this is called or something is written through it.
        Milvus shows new rows at once; there this only reads the settings again.
        """
        return self._backend.refresh()

    def flush(self) -> None:
        """Store everything in the form that is fastest to open and to search."""
        self._backend.flush()

    def compact(self) -> None:
        """Remove deleted rows permanently and rebuild the head."""
        self._backend.compact()
        self._backend.flush()

    def verify(self) -> None:
        """Read everything and compare checksums; a :class:`~smec_st.data.DataError` names what is damaged."""
        self._backend.verify()

    # -- search -------------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        where: Where | None = None,
        schedule: Schedule | None = None,
        fingerprint: str | None = None,
    ) -> Hits:
        """Find the ``k`` nearest documents of each query.

        Args:
            queries: ``(Q, D)`` or ``(D,)`` vectors of the backbone; a text or a list of texts if a model was given;
                or ``(Q, m)`` vectors compressed to one of the stored sizes, at which the funnel then ends.
            k: Number of results per query, at least 1; an index with fewer rows returns all of them.
            where: Filter, for instance ``{"lang": "en", "year": {"$gte": 2020}}``.
            schedule: Used instead of the stored schedule.
            fingerprint: Fingerprint of the compressor of the queries, to check that it is that of the index.

        Raises:
            DataError: If queries hold NaN, have another width or fingerprint, or are text without a model, or if a
                field is unknown.
        """
        k = whole_number(k, "k")
        self._check_fingerprint(fingerprint)
        by_table = encode_queries(self.settings, self._compressor, self._embed(queries))
        reader, schedule = self._backend.reader(), schedule or self.schedule
        steps = steps_for(reader, schedule, k, by_table)
        return run_in_blocks(reader, steps, by_table, where, schedule.effort)

    def _embed(self, queries: ArrayLike) -> ArrayLike:
        """Embed queries that are texts; vectors are returned as they are."""
        texts = [queries] if isinstance(queries, str) else queries
        if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
            return queries
        if not texts:
            raise DataError("no queries were given.")
        if self._model is None:
            raise DataError("queries are texts, but no model is given to embed them.")
        from smec_st.data.embedding import backbone_record, embed, load_model

        model = load_model(self._model) if isinstance(self._model, str) else self._model
        record, width = backbone_record(model), int(model.get_embedding_dimension() or 0)
        name = self._model if isinstance(self._model, str) else "the model"
        check_space(self._compressor, width, record if name == "the model" else {**record, "model": name}, name)
        self._model = model
        return embed(model, list(texts), "query")

    def _check_fingerprint(self, fingerprint: str | None) -> None:
        if fingerprint is not None and fingerprint != self.settings.fingerprint:
            raise DataError(
                f"these vectors were made with the compressor {fingerprint}, the index with "
                f"{self.settings.fingerprint}: they cannot be mixed. Transform them again."
            )
