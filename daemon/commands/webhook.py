"""`learnd webhook` (list, test): what a fine-tuning service has told, and whether it can."""

from typing import TYPE_CHECKING, Annotated
from urllib.parse import SplitResult, urlsplit

import typer

from daemon.commands.asking import (
    Answer,
    AsJson,
    Config,
    DataDir,
    Limit,
    Url,
    asks,
    connected,
    settings_of,
)
from learning.errors import LearningError

if TYPE_CHECKING:
    from daemon.client import Client

NEWEST = 100
"""So many may have come beside a test."""


class NotReceivedError(LearningError):
    """Whoever answered a test, it was not a daemon of this database."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} answered, but the daemon received nothing: does it lead here?")
        self.address = address


def _address(text: str) -> SplitResult:
    try:
        address = urlsplit(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if address.scheme not in ("http", "https") or not address.netloc:
        raise typer.BadParameter(f"{text!r} is no address such as https://learn.example.com/x")
    return address


commands = typer.Typer(
    name="webhook",
    help="Signed webhooks of a fine-tuning service.",
    no_args_is_help=True,
)


@commands.command("list")
@asks
def list_webhooks(
    daemon: "Client",
    type: Annotated[
        list[str] | None,
        typer.Option(help="Only this type, such as fine_tuning.job.succeeded; may be repeated."),
    ] = None,
    limit: Limit = 20,
) -> Answer:
    """List the webhooks that were received in the last seven days, newest first."""
    from daemon import screens

    return list(daemon.pages("/v1/webhooks", limit, type=type)), screens.webhooks


@commands.command("test")
def send_test(
    type: Annotated[str, typer.Option(help="The type of the event.")] = "fine_tuning.job.succeeded",
    job: Annotated[
        str, typer.Option(metavar="ID", help="The job that it is about.")
    ] = "ftjob-of-a-test",
    to: Annotated[
        SplitResult | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where the service sends. [the daemon itself]",
            parser=_address,
        ),
    ] = None,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Send a signed event to the running daemon, and say what came of it.

    Signed with remote.openai_webhook_secret, from the settings or the environment. The daemon
    takes it for a real one: the provider asks at once how the job is.
    """
    import json
    import secrets
    from datetime import UTC, datetime

    from daemon import screens
    from daemon.client import Client
    from daemon.printing import show_json
    from daemon.settings_sources import SettingsError

    key = settings_of(config, data_dir).remote.webhook_key()
    if key is None:
        raise SettingsError(["remote.openai_webhook_secret: needed here as in the daemon, to sign"])
    now, name = datetime.now(UTC), f"learnd-test-{secrets.token_hex(8)}"
    event = {
        "id": name,
        "object": "event",
        "created_at": int(now.timestamp()),
        "type": type,
        "data": {"id": job},
    }
    body = json.dumps(event).encode()
    headers = key.sign(name, now, body)
    with connected(url, config, data_dir) as daemon:
        if to is None:
            daemon.deliver("/webhooks/openai", body, headers)
        else:
            with Client(f"{to.scheme}://{to.netloc}", token="") as door:
                door.deliver(to._replace(scheme="", netloc="").geturl(), body, headers)
        # Not the answer tells what came of it, but the daemon: somebody else may have answered.
        newest = daemon.pages("/v1/webhooks", NEWEST, type=type)
        kept = next((one for one in newest if one["delivery_id"] == name), None)
    if kept is None:
        raise NotReceivedError(to.geturl() if to else "the daemon")
    show_json(kept) if as_json else screens.webhook_test(kept)
