"""Let one process at a time write an output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smec_st.system.errors import DataError


@contextmanager
def write_lock(out: Path) -> Iterator[None]:
    """Lock an output for this process, by a lock file next to it. A killed process leaves no lock behind.

    Args:
        out: The file or folder to be written; it need not exist.

    Raises:
        DataError: If another process holds the lock.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f".{out.name}.lock")
    handle = _locked_handle(path, out)
    try:
        yield
    finally:
        try:
            with suppress(PermissionError):  # Windows does not remove an open file
                path.unlink(missing_ok=True)  # while it is locked, so that nobody locks a file that is about to go
        finally:
            os.close(handle)


def _locked_handle(path: Path, out: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except ImportError:  # Windows
            return handle
        except FileNotFoundError:
            pass  # the owner before us removed the file between our two looks at it
        except OSError as error:
            os.close(handle)
            raise DataError(f"{out} is being written by another process.") from error
        os.close(handle)
