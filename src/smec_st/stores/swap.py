"""Replace a store by new files with crash-safe renames: an interrupted swap is finished on the next run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smec_st.system.files import write_text


def swap(
    store: Path, space: Mapping[str, Any], renames: Sequence[tuple[Path, Path]], leftovers: Sequence[Path] = ()
) -> None:
    """Rename files and folders next to a store one after another, then remove what is no longer needed.

    All steps are written to a journal first. If the process stops in between, :func:`finish_swap` does the rest.

    Args:
        store: The store; the journal is named after it.
        space: Description of the new vectors.
        renames: Old and new paths, all in the folder of the store or below it. A new path that is a file is replaced.
        leftovers: Files and folders to remove afterwards.
    """
    names = [[os.path.relpath(path, store.parent) for path in pair] for pair in renames]
    left = [os.path.relpath(path, store.parent) for path in leftovers]
    write_text(_journal(store), json.dumps({"space": space, "renames": names, "leftovers": left}))
    finish_swap(store)


def finish_swap(store: Path) -> dict[str, Any] | None:
    """Finish an interrupted :func:`swap`.

    Returns:
        The description of the vectors that the store now holds; None if no swap was interrupted.
    """
    journal = _journal(store)
    if not journal.is_file():
        return None
    plan = json.loads(journal.read_text(encoding="utf-8"))
    while plan["renames"]:
        source, target = (store.parent / name for name in plan["renames"][0])
        if source.exists():  # otherwise it was renamed before the interruption
            os.replace(source, target)
        plan["renames"].pop(0)  # recorded at once, because a later rename may create a file of the same name
        write_text(journal, json.dumps(plan))
    for rest in (store.parent / name for name in plan["leftovers"]):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)
    journal.unlink()
    return dict(plan["space"])


def _journal(store: Path) -> Path:
    return store.with_name(f".{store.name}.swap.json")
