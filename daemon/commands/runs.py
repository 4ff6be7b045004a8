"""`learnd runs` (list, show, report, cancel, resolve): what was trained, and how far it came."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from daemon.commands.asking import (
    Answer,
    AsJson,
    Config,
    DataDir,
    Limit,
    Reason,
    Url,
    asks,
    connected,
)

if TYPE_CHECKING:
    from daemon.client import Client

RunId = Annotated[str, typer.Argument(metavar="RUN", help="As `learnd runs` shows.")]


class ListedByDefault(TyperGroup):
    """Commands about one noun, where no command means `list` and an id means `show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command that was left out."""
        first = args[0] if args else ""
        if first not in self.commands and first not in ctx.help_option_names:
            args = ["show" if first and not first.startswith("-") else "list", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(
    name="runs",
    cls=ListedByDefault,
    help="Fine-tune runs: `learnd runs` lists them, `learnd runs RUN` shows one.",
)


@commands.command("list")
@asks
def list_runs(
    daemon: "Client",
    line: Annotated[str | None, typer.Option(help="Only this model line.")] = None,
    state: Annotated[str | None, typer.Option(help="Only this state, such as failed.")] = None,
    limit: Limit = 20,
) -> Answer:
    """List runs, newest first; also meant by `learnd runs` alone."""
    from daemon import screens

    listed = list(daemon.pages("/v1/runs", limit, line=line, state=state))
    return listed, screens.runs


@commands.command("show")
@asks
def show_run(
    daemon: "Client",
    run: RunId,
) -> Answer:
    """Show one run with its attempts and history; also meant by `learnd runs RUN`."""
    from daemon import screens
    from daemon.client import part

    return daemon.get(f"/v1/runs/{part(run)}"), screens.run


@commands.command("report")
def report_run(
    run: RunId,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write it. [report-RUN]")
    ] = None,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's training report with its curves: Markdown, HTML and JSON."""
    from daemon.client import part
    from daemon.printing import say, show_json
    from daemon.run_report import report_of
    from finetune.report.files import write_report

    with connected(url, config, data_dir) as daemon:
        found = daemon.get(f"/v1/runs/{part(run)}")
        line, made = found["summary"]["line"], found["summary"]["version"]
        version = daemon.get(f"/v1/models/{part(line)}/versions/{part(made)}") if made else None
    report = report_of(found, version)
    if as_json:
        show_json(report.as_json())
    else:
        say(str(write_report(output or Path(f"report-{run}"), report)))


@commands.command("cancel")
@asks
def cancel_run(
    daemon: "Client",
    run: RunId,
    reason: Reason = "",
) -> Answer:
    """End a run and its job; what it trained on comes back in the line's next batch."""
    from daemon import screens
    from daemon.client import part

    return daemon.post(f"/v1/runs/{part(run)}/cancel", {"reason": reason}), screens.cancelled


@commands.command("resolve")
def resolve_run(
    run: RunId,
    no_job: Annotated[
        bool, typer.Option("--no-job", help="The launch made no job: it may be tried again.")
    ] = False,
    job: Annotated[
        str | None, typer.Option("--job", metavar="ID", help="The job that the launch made.")
    ] = None,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Say what became of a launch that a run waits for, because nobody heard the reply."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    if no_job == (job is not None):
        raise typer.BadParameter("one of --no-job and --job ID is needed")
    with connected(url, config, data_dir) as daemon:
        done = daemon.post(f"/v1/runs/{part(run)}/resolve", {"job_id": job})
    show_json(done) if as_json else screens.resolved(done)
