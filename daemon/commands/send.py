"""`learnd send`: events from a file to Kafka, or to the daemon itself."""

from enum import StrEnum
from typing import Annotated

import typer

from daemon.commands.asking import AsJson, Config, DataDir, Url, connected, quiet, settings_of
from daemon.exit_status import ExitStatus

commands = typer.Typer()


class Kind(StrEnum):
    """The kinds of event, as learning.ports.EventKind names them."""

    OUTPUT = "output"
    FEEDBACK = "feedback"


@commands.command()
def send(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="JSONL; - is standard input.")],
    bootstrap_servers: Annotated[
        str | None, typer.Option("--bootstrap-servers", help="host:port of the Kafka broker.")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", help="Topic for outputs. [the first configured]")
    ] = None,
    feedback_topic: Annotated[
        str | None, typer.Option("--feedback-topic", help="Topic for feedback. [likewise]")
    ] = None,
    http: Annotated[
        bool, typer.Option("--http", help="Send to the daemon itself, which answers each line.")
    ] = False,
    kind: Annotated[Kind | None, typer.Option(help="Of every line. [seen from each line]")] = None,
    validate: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Refuse lines that would be dead letters; with --http the daemon does anyway.",
        ),
    ] = True,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Send events from a file to Kafka, where the daemon reads them, or to the daemon."""
    from daemon.printing import complain, say, show_json
    from daemon.sending import send_file
    from daemon.sending_http import post_file

    given = {
        "kafka.bootstrap_servers": bootstrap_servers,
        "kafka.outputs_topics": topic,
        "kafka.feedback_topics": feedback_topic,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    if http:
        if overrides:
            raise typer.BadParameter("--http sends to the daemon: leave the options of Kafka out")
        with connected(url, config, data_dir) as daemon:
            report = post_file(file, daemon, kind=kind)
    else:
        settings = settings_of(config, data_dir, **overrides)
        if not settings.kafka.configured:
            raise typer.BadParameter(
                "no broker is known: give --bootstrap-servers HOST:PORT, set"
                " kafka.bootstrap_servers, or send to the daemon itself with --http"
            )
        quiet("critical")  # the client's own words about a broker that is away are ours to say
        report = send_file(file, settings.kafka, kind=kind, validate=validate)
    if as_json:
        show_json(
            {
                "sent": report.sent,
                "duplicates": report.duplicates,
                "n_refused": report.n_refused,
                "refused": [one._asdict() for one in report.refused],
            }
        )
    else:
        known = f" ({report.duplicates} were there already)" if report.duplicates else ""
        say(f"{report.sent} events sent{known}, {report.n_refused} lines refused")
    for refused in report.refused:
        complain(f"line {refused.line}: {refused.reason}")
    if report.n_refused:
        raise typer.Exit(ExitStatus.REFUSED)
