"""`learnd lineage`: which versions know an event, which events made a version."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def lineage(
    daemon: "Client",
    text: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="EVENT_ID (a number), PRODUCER/EVENT_ID, b-BATCH, r-RUN, or LINE@VERSION.",
        ),
    ],
    after: Annotated[int | None, typer.Option(help="Show the events after this number.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 100,
) -> Answer:
    """Tell which versions know an event, which events made a version."""
    from urllib.parse import quote

    from daemon import screens

    found = daemon.get(f"/v1/lineage/{quote(text, safe='/@')}", after=after, limit=limit)
    return found, screens.lineage
