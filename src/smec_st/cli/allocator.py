"""Keep freed memory for the next training step instead of returning it to the operating system after each.

glibc returns large blocks immediately, and the kernel has to clear them again when the next step allocates as much
(``benchmarks/allocator.py``).
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # from malloc.h
_NEVER, _STEP = 2**31 - 1, 256 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Configure glibc's allocator for this process and its children, unless a ``MALLOC_`` variable is set already.

    Returns:
        Whether the allocator was configured.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    for name, value in (("TRIM_THRESHOLD_", _NEVER), ("TOP_PAD_", _STEP), ("MMAP_MAX_", 0)):
        os.environ.setdefault(f"MALLOC_{name}", str(value))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # musl has no mallopt
    settings = ((_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP), (_MMAP_MAX, 0))
    return all([mallopt(option, value) for option, value in settings])
