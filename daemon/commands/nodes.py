"""`learnd node-gone`: what becomes of a machine's runs when it never comes back."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, Reason, asks

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command("node-gone")
@asks
def node_gone(
    daemon: "Client",
    node: Annotated[str, typer.Argument(metavar="NODE", help="As `learnd runs` names it.")],
    reason: Reason = "",
) -> Answer:
    """Give up a node that will not come back, so that others take its runs."""
    from daemon import screens
    from daemon.client import part

    return daemon.post(f"/v1/nodes/{part(node)}/gone", {"reason": reason}), screens.node_gone
