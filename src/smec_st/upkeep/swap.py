"""New files take a store's place by renames that may be cut off anywhere, and are done to the end the next time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smec_st.files import write_text


def swap(
    store: Path, space: Mapping[str, Any], renames: Sequence[tuple[Path, Path]], leftovers: Sequence[Path] = ()
) -> None:
    """Rename files and folders beside a store, one after another, then remove what is left over.

    What is to be done is written down first: from there on the new content is in place, once
    :func:`finish_swap` has run, whatever happens in between.

    Args:
        store: Its name is the journal's.
        space: Where the new vectors live.
        renames: From and to, all in the store's folder or below it. A target that is a file is replaced.
        leftovers: Files and folders that nobody needs afterwards.
    """
    names = [[os.path.relpath(path, store.parent) for path in pair] for pair in renames]
    left = [os.path.relpath(path, store.parent) for path in leftovers]
    write_text(_journal(store), json.dumps({"space": space, "renames": names, "leftovers": left}))
    finish_swap(store)


def finish_swap(store: Path) -> dict[str, Any] | None:
    """Do what a :func:`swap` was cut off from doing.

    Returns:
        Where the vectors in the store live now; None when there was nothing to do.
    """
    journal = _journal(store)
    if not journal.is_file():
        return None
    plan = json.loads(journal.read_text(encoding="utf-8"))
    while plan["renames"]:
        source, target = (store.parent / name for name in plan["renames"][0])
        if source.exists():  # if not, it was renamed already
            os.replace(source, target)
        plan["renames"].pop(0)  # at once: a later step may put something under the same name
        write_text(journal, json.dumps(plan))
    for rest in (store.parent / name for name in plan["leftovers"]):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)
    journal.unlink()
    return dict(plan["space"])


def _journal(store: Path) -> Path:
    return store.with_name(f".{store.name}.swap.json")
