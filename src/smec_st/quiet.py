"""Keep our dependencies' notes and bars off a user's screen."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

LIBRARIES = ("sentence_transformers", "transformers", "accelerate", "datasets", "huggingface_hub")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, the libraries that we call show errors only, and none of their progress bars."""
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
