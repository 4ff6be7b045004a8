"""`learnd explain`: why an event was accepted, held or refused, and what became of it."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def explain(
    daemon: "Client",
    event: Annotated[
        str, typer.Argument(metavar="EVENT", help="EVENT_ID (a number) or PRODUCER/EVENT_ID.")
    ],
) -> Answer:
    """Tell why an event was accepted, held or refused, and what became of it."""
    from urllib.parse import quote

    from daemon.explain_screen import explanation

    return daemon.get(f"/v1/explanations/{quote(event, safe='/@')}"), explanation
