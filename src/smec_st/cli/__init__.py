"""The command line, ``smec-st``. Each command reads its input, calls the library, and prints the result.

Unusable input ends with one line on standard error and exit code 2. An interrupted run ends with exit code 130; the
same command goes on from what was finished. Output folders appear only when they are complete.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from smec_st import __version__

# This must happen before torch is loaded. Threads that spin while they wait slow a busy machine down badly.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from smec_st.cli.analyze import analyze
from smec_st.cli.bridge import bridge
from smec_st.cli.card import card
from smec_st.cli.check import check
from smec_st.cli.compare import compare
from smec_st.cli.evaluate import evaluate
from smec_st.cli.export import export
from smec_st.cli.fit import fit
from smec_st.cli.index import index
from smec_st.cli.interrupt import never_ignored
from smec_st.cli.migrate import migrate
from smec_st.cli.push import push
from smec_st.cli.report import report
from smec_st.cli.search import search
from smec_st.cli.serve import serve
from smec_st.cli.transform import transform
from smec_st.cli.verify import verify

USAGE, INTERRUPTED = 2, 130


class _Interrupted(Exception):
    """Ctrl-C, as an exception that click passes on without printing a line of its own."""


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def app(context: click.Context) -> None:
    """Make the vectors of any embedding model many times smaller."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


COMMANDS = (
    *(fit, evaluate, report, compare, analyze, export, transform),
    *(check, migrate, bridge, index, search, card, push, verify, serve),
)
for command in COMMANDS:
    app.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit. Errors that a user can fix become one line and an exit code."""
    never_ignored()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    try:
        return int(app.main(arguments, prog_name="smec-st", standalone_mode=False) or 0)
    except click.ClickException as error:
        return _print_error(error.format_message(), USAGE)
    except (KeyboardInterrupt, _Interrupted, click.Abort):
        return _print_error("interrupted; the same command goes on from what was finished.", INTERRUPTED)
    except Exception as error:
        from smec_st.system.errors import DataError
        from smec_st.system.optional import how_to_install

        if isinstance(error, RecursionError):
            return _print_error("the input is nested too deeply.", USAGE)
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("smec_st"):
            package = error.name.partition(".")[0]
            return _print_error(f"this command needs {package}. {how_to_install(package)}", USAGE)
        if not isinstance(error, (DataError, OSError, FloatingPointError)):
            raise
        return _print_error(str(error), USAGE)


def _print_error(message: str, code: int) -> int:
    click.echo(f"smec-st: {' '.join(message.split())}", err=True)
    return code
