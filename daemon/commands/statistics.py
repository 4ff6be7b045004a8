"""`learnd stats`: what was learned, what people make of it, and what to do about it."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def stats(
    daemon: "Client",
    task_type: Annotated[
        str | None, typer.Option("--task-type", help="Only what is about this one.")
    ] = None,
    window: Annotated[
        str, typer.Option("--window", help="How far back is recent: 24h, 7d and the like.")
    ] = "24h",
) -> Answer:
    """Show rates, ratings, trends with their numbers, issues in feedback, and advice."""
    from daemon import statistics_screen

    found = daemon.get("/v1/stats", window=window, task_type=task_type)
    return found, statistics_screen.statistics
