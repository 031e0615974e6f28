"""Write files and folders atomically, and read and write JSON. A leading ``~`` is the user's home."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Name the file in errors of the system that name none, such as a full disk.

    Raises:
        DataError: Instead of such an error.
    """
    try:
        yield
    except OSError as error:
        from smec_st.system.errors import DataError

        if isinstance(error, FileExistsError):
            raise
        raise DataError(f"cannot write {path}: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: under a temporary name, which is then renamed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, like :func:`write_text`."""
    path = Path(os.path.expanduser(path))
    draft = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            draft.write_bytes(content)
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if there is no such file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


class new_folder:  # noqa: N801
    """Context manager that creates a folder atomically: it is filled under a temporary name, which is then renamed.

    The context gives the temporary folder. After an error it is removed, and nothing is created.

    Args:
        folder: The folder to create; it must not exist, or be empty.

    Raises:
        FileExistsError: If it is a file or not empty.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.expanduser(folder))
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} exists and is not empty. Choose another name or remove it.")
        self.draft = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.draft")

    def __enter__(self) -> Path:
        shutil.rmtree(self.draft, ignore_errors=True)
        with writing(self.folder):
            self.draft.mkdir(parents=True)
        return self.draft

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        try:
            with writing(self.folder):
                if isinstance(error, OSError) and error.filename is None:
                    raise error
                if kind is None:
                    if self.folder.exists():
                        self.folder.rmdir()
                    os.replace(self.draft, self.folder)
        finally:
            shutil.rmtree(self.draft, ignore_errors=True)
