"""``python -m smec_st``, and the command ``smec-st``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command. Ctrl-C while the package is imported ends it as later, with one line and exit code 130."""
    try:
        from smec_st.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("smec-st: interrupted.\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
