"""Replace a store by new files with crash-safe renames: an interrupted swap is finished on the next run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smec_st.system.errors import DataError, parse_json
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
    plan = _read_journal(journal, store)
    while plan["renames"]:
        source, target = (store.parent / name for name in plan["renames"][0])
        if source.exists():  # otherwise it was renamed before the interruption
            os.replace(source, target)
        plan["renames"].pop(0)  # recorded at once, because a later rename may create a file of the same name
        write_text(journal, json.dumps(plan))
    for rest in (store.parent / name for name in plan["leftovers"]):
        shutil.rmtree(rest) if rest.is_dir() and not rest.is_symlink() else rest.unlink(missing_ok=True)
    journal.unlink()
    return dict(plan["space"])


def _read_journal(journal: Path, store: Path) -> dict[str, Any]:
    """Read a journal, which may come from anywhere; it is followed only within the files of its own store."""
    plan = parse_json(journal.read_bytes(), str(journal))
    try:
        targets = [name for pair in plan["renames"] for name in pair]
        is_ours = all(_is_of_store(name, store) for name in targets)
        # The store itself is renamed, never removed.
        is_ours &= all(_is_of_store(name, store) and name.startswith(f".{store.name}.") for name in plan["leftovers"])
        is_ours &= all(len(pair) == 2 for pair in plan["renames"]) and isinstance(plan["space"], dict)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{journal} is damaged; remove it and look at what is beside it.") from error
    if not is_ours:
        raise DataError(f"{journal} names files that are not those of {store}; nothing was touched. Remove it.")
    return dict(plan)


def _is_of_store(name: str, store: Path) -> bool:
    """Return whether a path, relative to the folder of the store, is one that a swap of this store can name."""
    first, *rest = Path(name).parts or ("",)
    drafts = (f"{store.name}.partial", f"{store.name}.json", f"{store.name}.json.draft")
    known = first in (store.name, *drafts) or first.startswith(f".{store.name}.")
    is_inside = (store.parent / name).parent.resolve().is_relative_to(store.parent.resolve())  # links lead elsewhere
    return known and ".." not in rest and is_inside


def _journal(store: Path) -> Path:
    return store.with_name(f".{store.name}.swap.json")
