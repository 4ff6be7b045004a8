"""`learnd import`: a file of examples that people labelled."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.asking import AsJson, Config, DataDir, Url, connected
from daemon.exit_status import ExitStatus

commands = typer.Typer()


@commands.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)],
    task_type: Annotated[str, typer.Option("--task-type", help="What the rows are examples of.")],
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Human-labelled examples that judge, never train.")
    ] = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Import human-labelled rows (JSONL) into the held-out set."""
    from daemon import screens
    from daemon.printing import show_json

    if not held_out:
        raise typer.BadParameter("--held-out is needed: training data comes in by `learnd send`")
    with connected(url, config, data_dir) as daemon:
        done = daemon.post_file("/v1/held-out", file, task_type=task_type)
    show_json(done) if as_json else screens.imported(done)
    if done["refused"] and not done["added"] and not done["duplicates"]:
        raise typer.Exit(ExitStatus.REFUSED)
