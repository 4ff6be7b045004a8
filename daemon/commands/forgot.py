"""`learnd forgot`: what a version gained and lost against the champion of its time."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def forgot(
    daemon: "Client",
    model: Annotated[
        str, typer.Argument(metavar="LINE[@V]", help="A line's newest version, or this one.")
    ],
) -> Answer:
    """Tell what a version forgot: by task type, producer and category, with examples."""
    from daemon import screens
    from daemon.client import part

    line, _, version = model.partition("@")
    if not version:
        version = next(iter(daemon.pages(f"/v1/models/{part(line)}/versions", 1)))["version"]
    return daemon.get(f"/v1/models/{part(line)}/versions/{part(version)}"), screens.forgot
