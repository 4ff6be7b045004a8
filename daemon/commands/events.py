"""`learnd events` (list, show, approve, reject, release): stored outputs, verdicts by hand."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import Answer, Limit, Reason, asks

if TYPE_CHECKING:
    from daemon.client import Client

EventNumber = Annotated[int, typer.Argument(metavar="ID", min=1, help="As `events list` shows.")]

commands = typer.Typer(
    name="events",
    help="Stored outputs: look at them, and give a verdict by hand.",
    no_args_is_help=True,
)


@commands.command("list")
@asks
def list_events(
    daemon: "Client",
    state: Annotated[
        str | None, typer.Option(help="queued, held, quarantined, rejected, sealed, ...")
    ] = None,
    task_type: Annotated[str | None, typer.Option("--task-type")] = None,
    limit: Limit = 20,
) -> Answer:
    """List stored outputs, newest first."""
    from daemon import screens

    listed = list(daemon.pages("/v1/events", limit, state=state, task_type=task_type))
    return listed, screens.events


@commands.command("show")
@asks
def show_event(
    daemon: "Client",
    event: EventNumber,
) -> Answer:
    """Show one output with its feedback, batches and history."""
    from daemon import screens

    return daemon.get(f"/v1/events/{event}"), screens.event


@commands.command()
@asks
def approve(
    daemon: "Client",
    event: EventNumber,
    reason: Reason = "",
) -> Answer:
    """Let a held or quarantined output train."""
    return _judged(daemon, event, True, reason)


@commands.command()
@asks
def reject(
    daemon: "Client",
    event: EventNumber,
    reason: Reason = "",
) -> Answer:
    """Keep an output from training, also one that is queued."""
    return _judged(daemon, event, False, reason)


@commands.command()
@asks
def release(
    daemon: "Client",
    producer: Annotated[str | None, typer.Option(help="Whose events.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="What stopped them: repeat, trigger, surprise, ...")
    ] = None,
    task_type: Annotated[str | None, typer.Option("--task-type")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="So many at most.")] = 100,
    reason: Reason = "",
) -> Answer:
    """Let the oldest events go that the firewall stopped, of a producer or by a rule."""
    from daemon import firewall_screen

    given = {"producer": producer, "rule": rule, "task_type": task_type, "most": limit}
    released = daemon.post("/v1/firewall/release", {**given, "reason": reason})
    return released, firewall_screen.released


def _judged(daemon: "Client", event: int, approved: bool, reason: str) -> Answer:
    from daemon.printing import say

    body = {"approved": approved, "reason": reason}
    judged = daemon.post(f"/v1/events/{event}/verdict", body)
    return judged, lambda judged: say(f"event {event} is {judged['state']} now")
