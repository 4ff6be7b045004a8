"""`learnd settings` (get, set, unset, history, undo): settings that change while learnd runs."""

import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

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
    key_values,
    settings_of,
)

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.offline_settings import OfflineSettings

T = TypeVar("T")

Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Such as gate.margin.")]
IfRevision = Annotated[
    int | None,
    typer.Option(
        "--if-revision", min=0, metavar="N", help="Only if nothing was changed since revision N."
    ),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Open the database: for a daemon that does not start."),
]

commands = typer.Typer(
    name="settings", help="Settings that can be changed while learnd runs.", no_args_is_help=True
)


@commands.command()
def get(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="Settings, or sections.")
    ] = None,
    offline: Offline = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show settings, where each was set, and which can be changed; --offline: what is stored."""
    from daemon import setting_screens
    from daemon.printing import show_json

    if offline:
        found = _offline(config, data_dir, lambda store: store.now())
    else:
        with connected(url, config, data_dir) as daemon:
            found = daemon.get("/v1/settings")
    found = setting_screens.only(found, keys or [])
    show_json(found) if as_json else setting_screens.settings(found)


@commands.command("set")
def set_values(
    values: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="Set together; a VALUE is JSON, or a text."),
    ],
    reason: Reason = "",
    if_revision: IfRevision = None,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change settings; they hold at once, in every daemon of the database, and from then on."""
    given = {key: value_of(text) for key, text in key_values(values).items()}
    _change(given, reason, if_revision, url, config, data_dir, as_json)


@commands.command()
def unset(
    keys: Keys,
    reason: Reason = "",
    if_revision: IfRevision = None,
    offline: Offline = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Take back what the store says, so that settings are as configured again."""
    from daemon import setting_screens
    from daemon.client import who_asks
    from daemon.printing import show_json

    if not offline:
        _change(dict.fromkeys(keys), reason, if_revision, url, config, data_dir, as_json)
        return
    done = _offline(
        config, data_dir, lambda store: store.unset(keys, reason=reason, actor=who_asks())
    )
    show_json(done) if as_json else setting_screens.changed(done)


@commands.command()
def history(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="Of one setting.")] = None,
    limit: Limit = 20,
    offline: Offline = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List what was changed at run time: by whom, when and why; newest first."""
    from daemon import setting_screens
    from daemon.printing import show_json

    if offline:
        page = _offline(
            config, data_dir, lambda store: store.history(key, before=None, limit=limit)
        )
        listed = page["items"]
    else:
        with connected(url, config, data_dir) as daemon:
            listed = list(daemon.pages("/v1/settings/history", limit, key=key))
    show_json(listed) if as_json else setting_screens.history(listed)


@commands.command()
@asks
def adaptation(daemon: "Client") -> Answer:
    """Show the settings that adapt by themselves, and why each changes or does not."""
    from daemon import setting_screens

    return daemon.get("/v1/settings/adaptation"), setting_screens.adaptation


@commands.command()
def undo(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="The last change of this setting.")
    ] = None,
    revision: Annotated[
        int | None,
        typer.Option("--revision", min=1, metavar="N", help="This change. [the last one]"),
    ] = None,
    reason: Reason = "",
    if_revision: IfRevision = None,
    offline: Offline = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Take one change back, with all that was set in it; again: the one before."""
    from daemon import setting_screens
    from daemon.client import who_asks
    from daemon.printing import show_json

    if key is not None and (revision is not None or offline):
        raise typer.BadParameter("a KEY goes neither with --revision nor with --offline")
    if offline:
        done = _offline(
            config, data_dir, lambda store: store.undo(revision, reason=reason, actor=who_asks())
        )
    else:
        body = {"revision": revision, "key": key, "reason": reason, "if_revision": if_revision}
        with connected(url, config, data_dir) as daemon:
            done = daemon.post("/v1/settings/undo", body)
    show_json(done) if as_json else setting_screens.changed(done)


def _change(
    values: dict[str, Any],
    reason: str,
    if_revision: int | None,
    url: str | None,
    config: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    from daemon import setting_screens
    from daemon.printing import show_json

    body = {"values": values, "reason": reason, "if_revision": if_revision}
    with connected(url, config, data_dir) as daemon:
        done = daemon.post("/v1/settings", body)
    show_json(done) if as_json else setting_screens.changed(done)


def _offline(
    config: Path | None,
    data_dir: Path | None,
    ask: "Callable[[OfflineSettings], Awaitable[Any]]",
) -> Any:
    """What the database says, in the form of the API's answers."""
    import asyncio
    from datetime import UTC, datetime

    from pydantic import TypeAdapter

    from daemon.offline_settings import offline_settings

    async def asked() -> Any:
        settings = settings_of(config, data_dir)
        async with offline_settings(settings, lambda: datetime.now(UTC)) as store:
            return await ask(store)

    found = asyncio.run(asked())
    return TypeAdapter(type(found)).dump_python(found, mode="json")


def value_of(text: str) -> Any:
    """JSON where it is JSON; a text needs no quotes."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value
