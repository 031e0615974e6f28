"""Ctrl-C that Python may not lose.

Python raises ``KeyboardInterrupt`` in whatever runs when the signal arrives. In a destructor or in the callback of a
weak reference, of which training has thousands, the exception is printed and ignored, and the command would run on.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable

#: Seconds until the interrupt is raised again. The destructor that swallowed it has returned by then.
AGAIN_AFTER = 0.05


def never_ignored() -> None:
    """Raise an ignored ``KeyboardInterrupt`` again, until it reaches the command. Other exceptions pass unchanged."""
    before: Callable[[sys.UnraisableHookArgs], object] = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            again = threading.Timer(AGAIN_AFTER, _thread.interrupt_main)
            again.daemon = True
            again.start()
        else:
            before(ignored)

    sys.unraisablehook = hook
