"""`learnd feedback` (show, reset): what feedback has changed in the loop."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from daemon.commands.asking import Answer, Limit, Reason, asks

if TYPE_CHECKING:
    from daemon.client import Client


class ShownByDefault(TyperGroup):
    """A group of commands that shows when none of them is named: `learnd feedback coding`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click.Command, of which typer has a copy of its own."""
        if "--help" not in args[:1] and not (args and args[0] in self.commands):
            args = ["show", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(
    name="feedback",
    cls=ShownByDefault,
    help="What feedback has changed in the loop; `learnd feedback [TASK_TYPE]` shows it.",
)


@commands.command()
@asks
def show(
    daemon: "Client",
    task_type: Annotated[
        str | None, typer.Argument(metavar="[TASK_TYPE]", help="With what brought it there.")
    ] = None,
    limit: Limit = 20,
) -> Answer:
    """Show bars, trust, style and weights as feedback has turned them."""
    from daemon import feedback_screen
    from daemon.client import part

    if task_type is None:
        return daemon.get("/v1/feedback/loop"), feedback_screen.every_task_type
    found = {
        "loop": daemon.get(f"/v1/feedback/loop/{part(task_type)}"),
        "effects": list(daemon.pages("/v1/feedback/effects", limit, task_type=task_type)),
    }
    return found, feedback_screen.task_type


@commands.command()
@asks
def reset(
    daemon: "Client",
    task_type: Annotated[str, typer.Argument(metavar="TASK_TYPE")],
    reason: Reason = "",
) -> Answer:
    """Take back everything that feedback has changed for a task type."""
    from daemon import feedback_screen

    body = {"task_type": task_type, "reason": reason}
    return daemon.post("/v1/feedback/reset", body), feedback_screen.reset
