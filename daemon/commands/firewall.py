"""`learnd firewall`: what was stopped so that nobody poisons a model."""

from typing import TYPE_CHECKING

import typer

from daemon.commands.asking import Answer, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def firewall(daemon: "Client") -> Answer:
    """Show what the firewall stopped in the last day, why, and how to let it go."""
    from daemon import firewall_screen

    return daemon.get("/v1/firewall"), firewall_screen.firewall
