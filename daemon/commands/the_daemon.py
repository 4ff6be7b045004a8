"""`learnd run`, `demo`, `check` and `status`: start the daemon, try it, look at it."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.asking import (
    AsJson,
    Config,
    DataDir,
    Url,
    connected,
    key_values,
    quiet,
    settings_of,
)
from daemon.exit_status import ExitStatus

commands = typer.Typer()


@commands.command()
def run(
    config: Config = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where everything is kept.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or console.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as queue.batch_size=8."),
    ] = None,
) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C."""
    given = {
        "http.host": host,
        "http.port": port,
        "log.level": log_level,
        "log.format": log_format,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    loaded = settings_of(config, data_dir, **overrides, **key_values(settings or []))
    from monitoring.logs import configure

    configure(loaded.log.level, loaded.log.format)
    from daemon.app import run as run_daemon

    raise typer.Exit(run_daemon(loaded))


@commands.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")] = False,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Where the demo keeps everything.")
    ] = Path("learnd-demo"),
) -> None:
    """Watch the whole loop: learn, refuse, promote, roll back (3 min)."""
    from daemon.demo import run_demo

    raise typer.Exit(run_demo(data_dir=data_dir, keep=keep))


@commands.command()
def check(config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show every setting and its source; try what it names: servers, folders, training.

    Versions are held against their files. Exit status: 0 all is well, or noted; 1 something is
    bad, and said with what to do; 2 wrong settings.
    """
    import asyncio

    from daemon.check import Finding, Grade, examine, with_stored
    from daemon.printing import Column, say, show_json, show_table, words

    quiet("warning")
    settings, stored = with_stored(settings_of(config, data_dir))
    explained = settings.explain()
    if not as_json:
        show_table(
            [Column("setting"), words("value"), words("source")],
            [(one.key, one.value, one.source) for one in explained],
        )

    async def examined() -> list[Finding]:
        findings = [] if stored is None else [stored]
        if stored is not None and not as_json:
            say(f"{stored.grade:<4}  {stored.subject}: {stored.detail}")
        async for finding in examine(settings):
            findings.append(finding)
            if not as_json:
                say(f"{finding.grade:<4}  {finding.subject}: {finding.detail}")
        return findings

    findings = asyncio.run(examined())
    if as_json:
        show_json(
            {
                "settings": [vars(one) for one in explained],
                "findings": [vars(one) for one in findings],
            }
        )
    if any(finding.grade is Grade.BAD for finding in findings):
        raise typer.Exit(ExitStatus.REFUSED)


@commands.command()
def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep it on the screen until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.2, max=3_600, help="With --watch: seconds between two looks.")
    ] = 2.0,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What waits, what runs, what each model line can prove."""
    from daemon import screens
    from daemon.printing import show_json

    if watch and as_json:
        raise typer.BadParameter("--watch is for people; a script asks `learnd status --json` anew")
    if watch:
        from daemon.watching import watch as keep_watching

        with connected(url, config, data_dir) as daemon:
            raise typer.Exit(keep_watching(daemon, interval))
    with connected(url, config, data_dir) as daemon:
        overview, health = daemon.get("/v1/status"), daemon.get("/healthz")
    if as_json:
        show_json({**overview, "health": health})
    else:
        screens.status(daemon.url, overview, health)
