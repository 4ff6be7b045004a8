"""`learnd dead-letters` (list, show, replay): records that could not become events."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.commands.asking import Answer, AsJson, Config, DataDir, Limit, Url, asks, connected
from daemon.exit_status import ExitStatus

if TYPE_CHECKING:
    from daemon.client import Client

LetterNumber = Annotated[
    int, typer.Argument(metavar="ID", min=1, help="As `dead-letters list` shows.")
]

commands = typer.Typer(
    name="dead-letters", help="Records that could not become events.", no_args_is_help=True
)


@commands.command("list")
@asks
def list_letters(
    daemon: "Client",
    reason: Annotated[str | None, typer.Option(help="Only this reason, such as not_json.")] = None,
    replayed: Annotated[
        bool | None,
        typer.Option("--replayed/--open", help="Only those that were replayed, or not."),
    ] = None,
    before: Annotated[
        int | None, typer.Option(metavar="ID", min=1, help="Only older ones: the next page.")
    ] = None,
    limit: Limit = 20,
) -> Answer:
    """List dead letters, newest first."""
    from daemon import screens

    listed = list(
        daemon.pages("/v1/dead-letters", limit, before=before, reason=reason, replayed=replayed)
    )
    return listed, screens.dead_letters


@commands.command("show")
@asks
def show_letter(
    daemon: "Client",
    letter: LetterNumber,
) -> Answer:
    """Show one dead letter with its bytes."""
    from daemon import screens

    return daemon.get(f"/v1/dead-letters/{letter}"), screens.dead_letter


@commands.command()
def replay(
    letters: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", min=1)] = None,
    reason: Annotated[
        str | None, typer.Option(help="All open ones with this reason, such as unknown_task_type.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All open ones.")] = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters down the path of intake again, oldest first.

    Goes on after a refusal; the exit status is 1 when there was one.
    """
    from daemon import screens
    from daemon.client import RefusedError
    from daemon.printing import complain, say, show_json

    if [bool(letters), reason is not None, every].count(True) != 1:
        raise typer.BadParameter("name dead letters by their IDs, or by --reason, or take --all")
    answers: list[dict[str, Any]] = []
    n_refused = 0
    with connected(url, config, data_dir) as daemon:
        if not letters:
            found = daemon.pages("/v1/dead-letters", sys.maxsize, reason=reason, replayed=False)
            letters = sorted(letter["id"] for letter in found)
        for letter in letters:
            try:
                became = daemon.post(f"/v1/dead-letters/{letter}/replay")
            except RefusedError as error:
                n_refused += 1
                answers.append({"id": letter, "refused": str(error)})
                if not as_json:
                    complain(str(error))
            else:
                answers.append({"id": letter, **became})
                if not as_json:
                    screens.replayed(letter, became)
    if as_json:
        show_json(answers)
    elif len(letters) != 1:
        say(f"{len(letters) - n_refused:,} replayed, {n_refused:,} refused")
    if n_refused:
        raise typer.Exit(ExitStatus.REFUSED)
