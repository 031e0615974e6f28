"""``FunnelIndex``: search the smallest size over everything, then rescore a shrinking shortlist at each larger one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smec_st.compressor import Compressor
from smec_st.data import DataError, check_vectors
from smec_st.data.errors import some
from smec_st.search.backend import Backend, Batch, Settings
from smec_st.search.checks import as_ids, check_fields, check_sizes, new_fields, new_ids
from smec_st.search.encoding import document_widths, encode, encode_queries, steps_for, wrong_width
from smec_st.search.engines import create_backend, open_backend
from smec_st.search.filters import Where
from smec_st.search.heads import check_kind
from smec_st.search.schedule import Schedule, default_schedule
from smec_st.search.steps import Hits, pad, run

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ADD_ROWS = 65536  # written and committed together
QUERY_BLOCK_BYTES = 64 << 20  # of candidate vectors compared at a time
KEEP_ORIGINALS = ("float32", "float16")

Progress = Callable[[int], object]


class FunnelIndex:
    """Documents to search, as a funnel over the sizes of a compressor.

    The URI chooses the engine: a name that ends in ``.db`` is a file of Milvus Lite, ``http://host:19530`` a Milvus
    server or cluster, and any other name a folder, searched by FAISS in this process. Made by :meth:`build`,
    :meth:`create` or :meth:`open`.

    The last step ranks by the originals, so results approach exact search over the vectors you had. To rank by the
    compressed vectors instead (a map learned from labels is often better than the originals), keep no originals.

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
        sizes: Sequence[int] | None = None,
        head: str = "hnsw-int8",
        originals: str | None = "float32",
        id_type: str = "int",
        fields: Mapping[str, str] | None = None,
        model: SentenceTransformer | str | None = None,
        schedule: Schedule | None = None,
        building: int = 0,
        source: str = "",
    ) -> FunnelIndex:
        """A new, empty index.

        Args:
            uri: Where; see the class.
            compressor: Maps vectors to the sizes.
            sizes: Which of its sizes to store; by default all that are smaller than full width.
            head: ``flat``, ``hnsw`` or ``ivf``, each also with ``-float16``, ``-int8``, ``-int4`` or ``-pq`` vectors.
            originals: ``float32`` or ``float16`` to keep them (on disk, memory-mapped), None to keep none.
            id_type: ``int`` or ``str``.
            fields: Scalar fields to filter by: name to ``int``, ``float``, ``str`` or ``bool``.
            model: Embeds queries given as text.
            schedule: How to search; by default a generic one until :meth:`tune` chooses from data.
            building: Rows to come, to mark the index as not complete.
            source: What is being built from, so that only the same input continues it.

        Raises:
            DataError: If something is unknown, or there is an index of that fingerprint already.
        """
        check_kind(head)
        if id_type not in ("int", "str"):
            raise DataError(f"ids are int or str, not {id_type!r}.")
        if originals is not None and originals not in KEEP_ORIGINALS:
            raise DataError(f"originals are kept as {' or '.join(KEEP_ORIGINALS)} or not at all, not {originals!r}.")
        chosen = check_sizes(compressor, sizes, originals is not None)
        full = compressor.width if originals else chosen[-1]
        settings = Settings(
            fingerprint=compressor.fingerprint,
            width=compressor.width,
            sizes=chosen,
            schedule=schedule or default_schedule([size for size in chosen if size < full], full),
            originals=originals,
            head=head,
            id_type=id_type,
            fields=check_fields(fields or {}),
            building=building,
            source=source,
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
        """An index that exists.

        Args:
            uri: Where.
            compressor: The compressor the caller uses: the index must have been made with the same one. Chooses among
                several indexes of one Milvus database; otherwise not needed, since the index keeps its own.
            model: Embeds queries given as text.

        Raises:
            DataError: If there is none, it is damaged or not complete, or has another fingerprint.
        """
        backend = open_backend(str(uri), None if compressor is None else compressor.fingerprint)
        settings = backend.settings
        try:
            if compressor is not None and compressor.fingerprint != settings.fingerprint:
                raise DataError(
                    f"{uri} was made with the compressor {settings.fingerprint}, not {compressor.fingerprint}: "
                    "vectors of the two must not meet."
                )
            if settings.building:
                raise DataError(
                    f"{uri} was interrupted while it was built ({len(backend)} of {settings.building} rows); "
                    "build it again with the same input to continue."
                )
            return cls(backend, compressor or backend.compressor(), model)
        except BaseException:
            backend.close()
            raise

    @classmethod
    def build(cls, uri: str | Path, compressor: Compressor, vectors: Any, **options: Any) -> FunnelIndex:
        """Create an index, add everything, and choose its schedule from data; see :func:`smec_st.search.build.build`.

        An interrupted build is continued by the same call.
        """
        from smec_st.search.build import build

        return build(uri, compressor, vectors, **options)

    def close(self) -> None:
        """Give back files, locks and connections."""
        self._backend.close()

    def __enter__(self) -> FunnelIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what it is ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._backend)

    @property
    def uri(self) -> str:
        """Where it is."""
        return self._backend.uri

    @property
    def settings(self) -> Settings:
        """What it is."""
        return self._backend.settings

    @property
    def schedule(self) -> Schedule:
        """How it is searched."""
        return self._backend.settings.schedule

    @property
    def compressor(self) -> Compressor:
        """The compressor it was made with."""
        return self._compressor

    def bytes(self) -> dict[str, Any]:
        """Bytes of every part, originals counted.

        Returns:
            ``ram`` and ``disk``, each with parts and ``total``; and what both are per row, with ``full_width_ram``,
            what plain float32 vectors in memory would take. An engine elsewhere reports only what it tells us.
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
        vectors: Any,
        ids: Sequence[Any] | np.ndarray | None = None,
        fields: Mapping[str, Sequence[Any]] | None = None,
        *,
        replace: bool = False,
        fingerprint: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Add rows, 65,536 at a time; each batch is there as a whole or not at all (in Milvus: each request of 16 MB).

        Args:
            vectors: ``(n, D)`` originals of any float type, a memory map too. Without originals in the index also
                ``(n, m)``, already compressed to its widest size.
            ids: ``n`` of them; None numbers the rows of an empty index from 0.
            fields: Values of every scalar field, ``n`` each, None where missing.
            replace: Take the place of rows with the same ids.
            fingerprint: Of the compressor that the caller uses; must be that of the index.
            progress: Called with the number of rows after each batch.

        Raises:
            DataError: For another width or fingerprint, NaN, ids that are there already or twice, an unknown field,
                or a disk that is full; what was committed before stays.
        """
        self._check_fingerprint(fingerprint)
        table = check_vectors(vectors, "document")
        takes = document_widths(self.settings)
        if table.shape[1] not in takes:
            raise wrong_width("document", table.shape[1], takes)
        if ids is None:
            if len(self) or self.settings.id_type == "str":
                raise DataError("give ids: only the rows of an empty index with int ids are numbered by themselves.")
            ids = range(len(table))
        plain = new_ids(ids, self.settings.id_type, len(table))
        values = new_fields(fields or {}, self.settings.fields, len(table))
        for start in range(0, len(table), ADD_ROWS):
            part = slice(start, start + ADD_ROWS)
            batch = Batch(
                plain[part],
                encode(self.settings, self._compressor, table[part]),
                {name: column[part] for name, column in values.items()},
            )
            self._backend.add(batch, replace)
            if progress is not None:
                progress(len(batch))

    def delete(self, ids: Sequence[Any] | np.ndarray) -> int:
        """Remove rows by id; ids that are not there are passed over.

        Returns:
            How many were removed.
        """
        return self._backend.delete(as_ids(ids, self.settings.id_type))

    def tune(
        self,
        queries: Any | None = None,
        *,
        target: float = 0.99,
        k: int = 10,
        most_queries: int = 512,
        progress: Progress | None = None,
    ) -> Schedule:
        """Choose the schedule from what is in the index now, measure it, and store it.

        Args:
            queries: ``(Q, D)``, of the kind that will be asked. Without them, documents are asked for their
                neighbours, which real queries may not resemble.
            target: Recall@k of exact full-width search; the lower end of a 95 % interval must reach it.
            k: Results per query.
            most_queries: An even share of more queries is used.
            progress: Called with the number of rows seen, in two passes.
        """
        from smec_st.search.tuning import tune

        schedule = tune(self, queries, target=target, k=k, most_queries=most_queries, progress=progress)
        self._backend.save_settings(self.settings.with_schedule(schedule))
        return schedule

    def narrow(self, uri: str | Path, size: int, head: str | None = None) -> FunnelIndex:
        """A copy for where there is little room: vectors up to one size, ids and fields, and no originals.

        "Offline wide, online narrow": the wide index is kept where documents are processed, the narrow one where
        queries come in. Both take the same queries; to rank like the wide one, ask it to rescore.

        Args:
            uri: Of the copy; any engine.
            size: Widest size that goes into it, one of :attr:`Settings.sizes`.
            head: Kind of its head; by default the same.
        """
        mine = self.settings
        if size not in mine.sizes:
            raise DataError(f"the index has the sizes {some(mine.sizes, 9)}, not {size}.")
        copy = FunnelIndex.create(
            uri,
            self._compressor,
            sizes=[each for each in mine.sizes if each <= size],
            head=head or mine.head,
            originals=None,
            id_type=mine.id_type,
            fields=mine.fields,
            model=self._model,
        )
        reader = self._backend.reader()
        for keys, vectors in reader.scan((size,)):
            ids = reader.ids(keys, np.ones(keys.shape, dtype=bool))
            copy.add(vectors[size], ids, reader.fields(keys), fingerprint=mine.fingerprint)
        copy.flush()
        return copy

    def refresh(self) -> bool:
        """Take in what another process wrote since this was opened; whether there was something.

        A folder is read as it was when it was opened, until this is called or something is written here. Milvus shows
        new rows by itself, and this reads a new schedule.
        """
        return self._backend.refresh()

    def flush(self) -> None:
        """Bring everything into the form that is fastest to open and to search."""
        self._backend.flush()

    def compact(self) -> None:
        """Drop deleted rows for good and build the head anew."""
        self._backend.compact()
        self._backend.flush()

    def verify(self) -> None:
        """Read everything and compare checksums; :class:`~smec_st.data.DataError` for what is damaged."""
        self._backend.verify()

    # -- search -------------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        where: Where | None = None,
        schedule: Schedule | None = None,
        fingerprint: str | None = None,
    ) -> Hits:
        """The ``k`` nearest documents of each query.

        Args:
            queries: ``(Q, D)`` or ``(D,)`` vectors of the backbone; text or texts, when the index has a model; or
                ``(Q, m)`` vectors that are already compressed to one of its sizes: the funnel then ends at that size.
            k: Results per query, at least 1; an index with fewer rows gives what it has.
            where: Filter, for instance ``{"lang": "en", "year": {"$gte": 2020}}``.
            schedule: In place of the stored one.
            fingerprint: Of the compressor that made compressed queries; must be that of the index.

        Raises:
            DataError: For NaN, a wrong width or fingerprint, an unknown field, or text without a model.
        """
        if k < 1:
            raise DataError(f"k must be at least 1, got {k}.")
        self._check_fingerprint(fingerprint)
        by_size = self._encode_queries(queries)
        reader = self._backend.reader()
        count = len(next(iter(by_size.values())))
        steps = steps_for(self.settings, schedule or self.schedule, k, len(reader), by_size)
        widest = max(self.settings.widths[table] * step.keep for table, step in steps)
        block = max(1, QUERY_BLOCK_BYTES // (4 * widest))
        parts = [
            run(reader, steps, {table: part[start : start + block] for table, part in by_size.items()}, where,
                (schedule or self.schedule).effort)
            for start in range(0, count, block)
        ]  # fmt: skip
        return pad(parts, self.settings.id_type)

    def _encode_queries(self, queries: Any) -> dict[int, np.ndarray]:
        texts = [queries] if isinstance(queries, str) else queries
        if isinstance(texts, (list, tuple)) and all(isinstance(each, str) for each in texts):
            queries = self._embed(list(texts))
        return encode_queries(self.settings, self._compressor, queries)

    def _embed(self, texts: list[str]) -> np.ndarray:
        from smec_st.data.embedding import embed, load_model

        if not texts:
            raise DataError("no queries were given.")
        if self._model is None:
            raise DataError("queries are texts, but no model is given to embed them.")
        if isinstance(self._model, str):
            self._model = load_model(self._model)
        return embed(self._model, texts, "query")

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_fingerprint(self, fingerprint: str | None) -> None:
        if fingerprint is not None and fingerprint != self.settings.fingerprint:
            raise DataError(
                f"these vectors are of the compressor {fingerprint}, the index is of {self.settings.fingerprint}: "
                "they must not meet. Transform them anew."
            )
