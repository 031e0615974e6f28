"""Hide the messages and progress bars of our dependencies."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

LIBRARIES = ("sentence_transformers", "transformers", "accelerate", "datasets", "huggingface_hub")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let the libraries that we call show only errors, and no progress bars, within this context."""
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    had_bars = transformers_logging.is_progress_bar_enabled()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if had_bars:
            transformers_logging.enable_progress_bar()
