"""`learnd import`: a dataset file to train on, or examples that people labelled to judge by."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.asking import AsJson, Config, DataDir, Url, connected
from daemon.exit_status import ExitStatus

commands = typer.Typer()


@commands.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)],
    line: Annotated[
        str | None, typer.Option("--line", help="The model line that is to learn from it.")
    ] = None,
    task_type: Annotated[
        str | None,
        typer.Option("--task-type", help="What the rows are examples of. [the line's only one]"),
    ] = None,
    approved: Annotated[
        bool,
        typer.Option("--approved", help="People approved every row: a fifth of them may judge."),
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Human-labelled examples that judge, never train.")
    ] = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Bring a dataset file in as one sealed batch, with a run; or as held-out examples.

    Rows may be in any format of `learnd dataset`. Importing a file again changes nothing.
    """
    from daemon import screens
    from daemon.printing import show_json

    if held_out:
        if task_type is None:
            raise typer.BadParameter("--held-out needs --task-type")
        if line is not None or approved:
            raise typer.BadParameter("--held-out goes with --task-type alone")
        with connected(url, config, data_dir) as daemon:
            done = daemon.post_file("/v1/held-out", file, task_type=task_type)
        show_json(done) if as_json else screens.imported(done)
        is_refused = done["refused"] and not done["added"] and not done["duplicates"]
    else:
        if line is None:
            raise typer.BadParameter("name the model line that is to learn from it: --line LINE")
        with connected(url, config, data_dir) as daemon:
            done = daemon.post_file(
                "/v1/imports",
                file,
                line=line,
                task_type=task_type,
                file=file.name[-256:],
                approved=approved,
            )
        show_json(done) if as_json else screens.dataset_imported(done)
        is_refused = done["refused"] and not done["added"] and not done["duplicates"]
    if is_refused:
        raise typer.Exit(ExitStatus.REFUSED)
