"""`learnd forget`: purge what events said, and take out of use what learned from them."""

import sys
from typing import Annotated, Any

import typer

from daemon.commands.asking import AsJson, Config, DataDir, Reason, Url, connected
from daemon.exit_status import ExitStatus

FORGET_SECONDS = 3_600.0
"""So long a daemon may take where there is much to purge."""

commands = typer.Typer()


@commands.command()
def forget(
    event: Annotated[
        str | None,
        typer.Option("--event", metavar="EVENT", help="EVENT_ID (a number) or PRODUCER/EVENT_ID."),
    ] = None,
    producer: Annotated[
        str | None, typer.Option("--producer", metavar="P", help="All that it sent.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="S", help="All events about it.")
    ] = None,
    reason: Reason = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Learn again what tainted versions knew, without it."),
    ] = False,
    delete_weights: Annotated[
        bool,
        typer.Option("--delete-weights", help="Delete the files of tainted versions too."),
    ] = False,
    scrub_files: Annotated[
        bool,
        typer.Option(
            "--scrub-files", help="Write the database's files anew, so that no remains are left."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask back.")] = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Forget what an event, a producer's events, or all events about a subject said, for good.

    Versions that learned from it are tainted: never served, promoted or rolled back to again. A
    champion among them gives way to its last clean ancestor.
    """
    from daemon.forget_screen import forgot_it, would_forget
    from daemon.printing import show_json

    named = {"event": event, "producer": producer, "subject": subject}
    if [given is not None for given in named.values()].count(True) != 1:
        raise typer.BadParameter("name one of --event, --producer and --subject")
    order: dict[str, Any] = {**named, "reason": reason}
    order |= {"delete_weights": delete_weights, "scrub_files": scrub_files, "retrain": retrain}
    with connected(url, config, data_dir) as daemon:
        if dry_run or not yes:
            would = daemon.post("/v1/forget", {**order, "dry_run": True}, seconds=FORGET_SECONDS)
            if dry_run:
                show_json(would) if as_json else would_forget(would)
                return
            if not sys.stdin.isatty():
                raise typer.BadParameter("it cannot be undone: say --yes, or look with --dry-run")
            would_forget(would)
            if not typer.confirm("It cannot be undone. Forget it?"):
                raise typer.Exit(ExitStatus.REFUSED)
        done = daemon.post("/v1/forget", order, seconds=FORGET_SECONDS)
    show_json(done) if as_json else forgot_it(done)
