"""The command `learnd`: what a person or a script types.

What each command does is in commands/; what it prints is in screens.py. Heavy things are
imported by the command that needs them, so that the others start at once.
"""

import os
import sys
from typing import Annotated

import typer

from daemon.commands import (
    chat,
    costs,
    dataset,
    dead_letters,
    events,
    explain,
    feedback,
    finetune,
    firewall,
    forget,
    forgot,
    import_file,
    lineage,
    models,
    nodes,
    queue,
    runs,
    send,
    settings,
    simulate,
    statistics,
    the_daemon,
    verdict,
    versions,
    webhook,
)
from daemon.exit_status import ExitStatus
from learning.errors import LearningError

EPILOG = (
    "Exit status: 0 done, or nothing to do and said why; 1 refused, or a check failed;"
    " 2 wrong usage or settings; 3 no daemon or broker answers, or the token is unknown;"
    " 130 interrupted."
)

# In the order of `learnd --help`.
SUBJECTS = (
    the_daemon,
    settings,
    queue,
    statistics,
    runs,
    costs,
    simulate,
    nodes,
    versions,
    verdict,
    forgot,
    chat,
    lineage,
    explain,
    events,
    firewall,
    feedback,
    forget,
    dead_letters,
    webhook,
    send,
    import_file,
    dataset,
    finetune,
    models,
)

app = typer.Typer(
    name="learnd",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for subject in SUBJECTS:
    app.add_typer(subject.commands)


def main() -> None:
    """Run the command line; every expected error is one message and an exit status."""
    # Whoever reads a pipe may use another encoding than the answers need.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except LearningError as error:
        from daemon.printing import complain

        complain(str(error))
        sys.exit(getattr(error, "exit_status", ExitStatus.REFUSED))
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.DONE)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"learnd {version('learnd')}")
        raise typer.Exit


@app.callback()
def learnd(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """A continuous-learning daemon: from approved outputs to a proven, promoted model version."""
