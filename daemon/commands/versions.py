"""`learnd versions`, `promote` and `rollback`: what a model line can answer with."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import (
    Answer,
    AsJson,
    Config,
    DataDir,
    Limit,
    Reason,
    Url,
    asks,
    connected,
)

if TYPE_CHECKING:
    from daemon.client import Client

LineName = Annotated[str, typer.Argument(metavar="LINE", help="A model line.")]

HASHING_SECONDS = 600.0
"""So long a daemon may take to hash the files of a version before it moves the champion."""

commands = typer.Typer()


@commands.command()
@asks
def versions(
    daemon: "Client",
    line: Annotated[str | None, typer.Argument(metavar="LINE", help="A model line.")] = None,
    limit: Limit = 20,
) -> Answer:
    """List model lines, or one line's versions with the gate's numbers."""
    from daemon import screens
    from daemon.client import part

    if line is None:
        return daemon.get("/v1/models"), screens.model_lines
    listed = list(daemon.pages(f"/v1/models/{part(line)}/versions", limit))
    return listed, screens.versions


@commands.command()
def promote(
    line: LineName,
    version: Annotated[str, typer.Argument(metavar="V", help="Such as 1.0.1-rc.1.")],
    force: Annotated[
        bool, typer.Option("--force", help="Overrule the gate; needs a reason.")
    ] = False,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion of its line."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    if force and not reason.strip():
        raise typer.BadParameter("--force needs a --reason, which is recorded")
    with connected(url, config, data_dir) as daemon:
        done = daemon.post(
            f"/v1/models/{part(line)}/promote",
            {"version": version, "force": force, "reason": reason},
            seconds=HASHING_SECONDS,
        )
    show_json(done) if as_json else screens.promoted(done)


@commands.command()
@asks
def rollback(
    daemon: "Client",
    line: LineName,
    to: Annotated[
        str | None, typer.Option("--to", metavar="V", help="A released version. [the one before]")
    ] = None,
    reason: Reason = "",
) -> Answer:
    """Make an earlier version the champion again."""
    from daemon import screens
    from daemon.client import part

    done = daemon.post(
        f"/v1/models/{part(line)}/rollback",
        {"to": to, "reason": reason},
        seconds=HASHING_SECONDS,
    )
    return done, screens.rolled_back
