"""`learnd costs`: what trainings cost, and what the caps leave."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def costs(
    daemon: "Client",
    by: Annotated[str, typer.Option(help="day, month, line (of this month) or run.")] = "day",
    limit: Annotated[int, typer.Option("--limit", min=1, max=366, help="So many at most.")] = 30,
) -> Answer:
    """Show what was spent and reserved, what the caps leave, and which runs wait for money."""
    from daemon import costs_screen

    found = {
        **daemon.get("/v1/costs"),
        "by": by,
        "accounts": daemon.get("/v1/costs/accounts", by=by, limit=limit),
    }
    return found, costs_screen.costs
