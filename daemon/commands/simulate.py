"""`learnd simulate`: what the record would have become under other settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.commands.asking import (
    AsJson,
    Config,
    DataDir,
    Url,
    connected,
    key_values,
    settings_of,
)
from daemon.commands.settings import value_of

if TYPE_CHECKING:
    from daemon.api.ports import SimulationAnswer

commands = typer.Typer()


@commands.command()
def simulate(
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="7d, 24h, or a time with its zone. [7d]"),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="The same. [now]")
    ] = None,
    changed: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting; may be repeated."),
    ] = None,
    line: Annotated[str | None, typer.Option("--line", help="Only this model line.")] = None,
    task_type: Annotated[
        str | None, typer.Option("--task-type", help="Only this task type.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="Events in a JSONL file; `-` is stdin."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Read the database itself: needs no daemon.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR|FILE.html", help="Write a page with pictures."),
    ] = None,
    run_seconds: Annotated[
        float,
        typer.Option(
            "--run-seconds",
            min=0.001,
            max=31_536_000,
            help="How long a run lasts, in a line that has none on record.",
        ),
    ] = 300.0,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded events under other settings, beside what did happen. Changes nothing."""
    from daemon import simulation_screen
    from daemon.printing import say, show_json
    from daemon.simulation_page import write_simulation

    if file is not None and offline:
        raise typer.BadParameter("--file needs no database: leave out --offline")
    values = {key: value_of(text) for key, text in key_values(changed or []).items()}
    asked = {
        "since": since if since is not None or file is not None else "7d",
        "until": until,
        "line": line,
        "task_type": task_type,
        "run_seconds": run_seconds,
    }
    if file is not None:
        found = _as_json(_of_file(file, config, data_dir, values, asked))
    elif offline:
        found = _as_json(_of_database(config, data_dir, values, asked))
    else:
        from daemon.simulations import MOST_SECONDS

        body = {**asked, "settings": values}
        with connected(url, config, data_dir) as daemon:
            found = daemon.post("/v1/simulations", body, seconds=MOST_SECONDS + 30)
    show_json(found) if as_json else simulation_screen.simulated(found)
    if output is not None:
        page = write_simulation(output, found)
        if not as_json:
            say(f"written: {page}")


def _of_file(
    file: str,
    config: Path | None,
    data_dir: Path | None,
    values: dict[str, Any],
    asked: dict[str, Any],
) -> "SimulationAnswer":
    from datetime import UTC, datetime

    from daemon.sending import opened
    from daemon.simulation_file import simulate_file

    settings = settings_of(config, data_dir)
    with opened(file) as lines:
        return simulate_file(lines, settings, values, now=datetime.now(UTC), **asked)


def _of_database(
    config: Path | None, data_dir: Path | None, values: dict[str, Any], asked: dict[str, Any]
) -> "SimulationAnswer":
    from datetime import UTC, datetime

    from daemon.live_settings import overlaid
    from daemon.simulating import order, perform
    from daemon.store.read_only import opened
    from daemon.store.setting_changes import stored_settings

    given = settings_of(config, data_dir)
    with opened(given.database_url) as database:
        settings = overlaid(given, database.read(stored_settings).values)
    return perform(order(settings, values, now=datetime.now(UTC), **asked))


def _as_json(found: "SimulationAnswer") -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(type(found)).dump_python(found, mode="json")
