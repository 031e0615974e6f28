"""The folder of an unfinished fit, beside its output: the same command with the same input continues it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np

    from smec_st.data import Collection, Qrels

KEY_LENGTH = 12
JUDGED = ("queries", "documents", "grades")


def run_key(collection: Collection, unlabelled: np.ndarray, dev: Qrels | None, settings: dict[str, Any]) -> str:
    """Hash all that a fit depends on: an unfinished run is only continued with the very same input."""
    from smec_st import __version__
    from smec_st.data.vectors import hash_rows

    known = [__version__, sorted(collection.qrels), dev is not None, dict(collection.backbone), settings]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    judged = [collection.qrels[name] for name in sorted(collection.qrels)]
    arrays = [getattr(qrels, name) for qrels in (*judged, *([] if dev is None else [dev])) for name in JUDGED]
    for array in (*arrays, collection.corpus, collection.queries, collection.own_document, unlabelled):
        hash_rows(digest, array)
    return digest.hexdigest()[:KEY_LENGTH]


@contextmanager
def work_dir(out: Path, key: str) -> Iterator[Path]:
    """Yield a folder for checkpoints next to ``out``; it is removed unless the run is interrupted."""
    work = out.with_name(f".{out.name}.{key}.unfinished")
    if _has_progress(work):
        click.echo(f"continuing the unfinished run in {work}", err=True)
    try:
        yield work
    except BaseException as error:
        if not _has_progress(work):
            shutil.rmtree(work, ignore_errors=True)
        if type(error).__name__ == "SafetensorError":  # a checkpoint, on a full disk
            from smec_st.system.errors import DataError, one_line

            raise DataError(f"cannot write {work}: {one_line(error)}") from error
        raise
    # Runs of other outputs may have names that begin with this one.
    own = re.compile(re.escape(f".{out.name}.") + f"[0-9a-f]{{{KEY_LENGTH}}}" + re.escape(".unfinished"))
    stale = [path for path in out.absolute().parent.iterdir() if own.fullmatch(path.name)]
    for path in (work, *stale):
        shutil.rmtree(path, ignore_errors=True)


def _has_progress(work: Path) -> bool:
    """Return whether a run can be continued: a candidate was chosen, or a stage has a checkpoint."""
    return any(any(work.rglob(name)) for name in ("decision.json", "stage-*/final", "stage-*/checkpoint-*"))
