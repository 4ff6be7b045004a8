"""`learnd flush` and `learnd batch-size`: when waiting events become a batch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.commands.asking import Answer, AsJson, Config, DataDir, Reason, Url, asks, connected

if TYPE_CHECKING:
    from daemon.client import Client

commands = typer.Typer()


@commands.command()
@asks
def flush(
    daemon: "Client",
    task_type: Annotated[
        str | None, typer.Option("--task-type", help="Only the line that learns from it.")
    ] = None,
) -> Answer:
    """Seal what waits into batches now; say which, or why nothing."""
    from daemon import screens

    return daemon.post("/v1/queue/flush", {"task_type": task_type}), screens.flushed


@commands.command("batch-size")
def batch_size(
    line: Annotated[str | None, typer.Argument(metavar="[LINE]", help="A model line.")] = None,
    size: Annotated[
        int | None, typer.Option("--set", min=1, metavar="N", help="Pin it to N events.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let it adapt again.")] = False,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show each line's batch size and why; pin one, or let it adapt again."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    if auto and size is not None:
        raise typer.BadParameter("--set pins the size, --auto releases it: give one of them")
    show: Callable[[Any], None]
    changes = auto or size is not None
    if changes and line is None:
        raise typer.BadParameter("name the model line whose batch size is to change")
    with connected(url, config, data_dir) as daemon:
        if line is None:
            found, show = daemon.get("/v1/queue/batch-sizes"), screens.batch_sizes
        elif changes:
            body = {"size": size, "reason": reason}
            found = daemon.post(f"/v1/queue/batch-sizes/{part(line)}", body)
            show = screens.batch_size_set
        else:
            found = daemon.get(f"/v1/queue/batch-sizes/{part(line)}")
            show = screens.batch_size
    show_json(found) if as_json else show(found)
