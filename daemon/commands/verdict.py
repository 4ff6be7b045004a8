"""`learnd verdict`: what people say of a version, and what follows from it."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def verdict(
    daemon: "Client",
    line: Annotated[
        str, typer.Argument(metavar="LINE[@V]", help="A model line; its champion, or a version.")
    ],
) -> Answer:
    """Show what people say of a version against the one before it, and each rollback's report."""
    from daemon import verdict_screen
    from daemon.client import part

    name, _, version = line.partition("@")
    asked = {"version": version} if version else {}
    return daemon.get(f"/v1/models/{part(name)}/verdict", **asked), verdict_screen.verdict
