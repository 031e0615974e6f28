"""Keep freed memory for the next step instead of handing it back to the system after each.

glibc returns large blocks at once, and the kernel has to clear them again when the next step asks for as much
(``benchmarks/allocator.py``).
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h
_NEVER, _STEP = 2**31 - 1, 256 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Set glibc's allocator so, for this process and those it starts; whether there is a glibc that took it.

    Whoever sets a ``MALLOC_`` variable has chosen otherwise.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    for name, value in (("TRIM_THRESHOLD_", _NEVER), ("TOP_PAD_", _STEP), ("MMAP_MAX_", 0)):
        os.environ.setdefault(f"MALLOC_{name}", str(value))
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # musl has none
    settings = ((_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP), (_MMAP_MAX, 0))
    return all([mallopt(option, value) for option, value in settings])
