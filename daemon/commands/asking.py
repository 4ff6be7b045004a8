"""What the commands share: how they find the daemon, and the options that say where.

A command that asks the daemon one thing and shows the answer is written with `asks`; one that
has to look at its options first, or shows as it goes, takes the options itself and asks inside
`connected`.
"""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate

import typer

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.settings import Settings

Url = Annotated[
    str | None, typer.Option("--url", envvar="LEARND_URL", help="Address of the daemon.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="LEARND_CONFIG", help="Settings file. [./learnd.yaml]"),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data directory of the daemon, for its token.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="So many at most.")]
Reason = Annotated[str, typer.Option("--reason", help="Goes into the history.")]

Answer = tuple[Any, Callable[[Any], None]]
"""What the daemon answered, and the screen that shows it to a person."""


def asks(command: "Callable[Concatenate[Client, ...], Answer]") -> Callable[..., None]:
    """Give a command the daemon, and the options that find it; print its answer, or its screen."""

    def asking(
        *,
        url: Url = None,
        config: Config = None,
        data_dir: DataDir = None,
        as_json: AsJson = False,
        **given: Any,
    ) -> None:
        from daemon.printing import show_json

        with connected(url, config, data_dir) as daemon:
            found, show = command(daemon, **given)
        show_json(found) if as_json else show(found)

    # What typer reads: the command's own options, and then the shared ones.
    _daemon, *own = inspect.signature(command).parameters.values()
    *shared, _given = inspect.signature(asking).parameters.values()
    update_wrapper(asking, command)
    asking.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    asking.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
    return asking


@contextlib.contextmanager
def connected(url: str | None, config: Path | None, data_dir: Path | None) -> "Iterator[Client]":
    """The running daemon, by the settings it was started with unless told otherwise."""
    from daemon.api.token import read_token
    from daemon.client import Client

    token = os.environ.get("LEARND_TOKEN")
    if url is None or not token:
        settings = settings_of(config, data_dir)
        url = url or _local_url(settings)
        token = token or read_token(settings.data_dir)
    with Client(url, token) as client:
        yield client


def settings_of(config: Path | None, data_dir: Path | None, **overrides: Any) -> "Settings":
    """The settings of the daemon here, with what the command line says over them."""
    from daemon.settings_sources import load

    if data_dir is not None:
        overrides["data_dir"] = data_dir
    return load(config, overrides)


def _local_url(settings: "Settings") -> str:
    host = settings.http.host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - a daemon that listens everywhere is here too
        host = "127.0.0.1"
    return (
        f"http://[{host}]:{settings.http.port}"
        if ":" in host
        else (f"http://{host}:{settings.http.port}")
    )


def key_values(texts: list[str]) -> dict[str, str]:
    """What `--set KEY=VALUE` said. Raises typer.BadParameter."""
    pairs = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
        pairs[key.strip()] = value.strip()
    return pairs


def quiet(level: str) -> None:
    """Log nothing below a level: the command has the terminal."""
    from monitoring.logs import configure

    configure(level, "console")
