"""Write files and folders so that they are never there half-written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, then rename it."""
    draft = path.with_name(path.name + ".partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


class new_folder:  # noqa: N801
    """Write a folder under another name, and rename it when all is there.

    Args:
        folder: Must not exist, or be empty.

    Raises:
        FileExistsError: If it holds something.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} exists and is not empty. Choose another name or remove it.")
        self.draft = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.draft")

    def __enter__(self) -> Path:
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(parents=True)
        return self.draft

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if self.folder.exists():
                self.folder.rmdir()
            os.replace(self.draft, self.folder)
        else:
            shutil.rmtree(self.draft, ignore_errors=True)
