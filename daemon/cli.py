"""The command `learnd`: what a person or a script types.

Each command asks the daemon or starts it; what it prints is in screens.py. Heavy things
are imported by the command that needs them, so that the others start at once.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from daemon.exit_status import ExitStatus
from learning.errors import LearningError

if TYPE_CHECKING:
    from daemon.client import Client
    from daemon.settings import Settings

EPILOG = (
    "Exit status: 0 done, or nothing to do and said why; 1 refused, or a check failed;"
    " 2 wrong usage or settings; 3 no daemon or broker answers, or the token is unknown;"
    " 130 interrupted."
)


class ListedByDefault(TyperGroup):
    """Commands about one noun, where no command means `list` and an id means `show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command that was left out."""
        first = args[0] if args else ""
        if first not in self.commands and first not in ctx.help_option_names:
            args = ["show" if first and not first.startswith("-") else "list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="learnd",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
events_app = typer.Typer(help="Stored outputs: look at them, and give a verdict by hand.")
letters_app = typer.Typer(help="Records that could not become events.")
runs_app = typer.Typer(
    cls=ListedByDefault,
    help="Fine-tune runs: `learnd runs` lists them, `learnd runs RUN` shows one.",
)
app.add_typer(events_app, name="events", no_args_is_help=True)
app.add_typer(letters_app, name="dead-letters", no_args_is_help=True)
app.add_typer(runs_app, name="runs")

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
LineName = Annotated[str, typer.Argument(metavar="LINE", help="A model line.")]


def main() -> None:
    """Run the command line; every expected error is one message and an exit status."""
    # Whoever reads a pipe may use another encoding than the answers need.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except LearningError as error:
        from daemon.printing import complain

        complain(str(error))
        sys.exit(getattr(error, "exit_status", ExitStatus.REFUSED))
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.DONE)


@contextlib.contextmanager
def _daemon(url: str | None, config: Path | None, data_dir: Path | None) -> "Iterator[Client]":
    """The running daemon, by the settings it was started with unless told otherwise."""
    from daemon.api.token import read_token
    from daemon.client import Client

    token = os.environ.get("LEARND_TOKEN")
    if url is None or not token:
        settings = _settings(config, data_dir)
        url = url or _local_url(settings)
        token = token or read_token(settings.data_dir)
    with Client(url, token) as client:
        yield client


def _settings(config: Path | None, data_dir: Path | None, **overrides: Any) -> "Settings":
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


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"learnd {version('learnd')}")
        raise typer.Exit


@app.callback()
def learnd(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    """A continuous-learning daemon: from approved outputs to a proven, promoted model version."""


# --- the daemon -----------------------------------------------------------------------


@app.command()
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
    loaded = _settings(config, data_dir, **overrides, **_key_values(settings or []))
    from monitoring.logs import configure

    configure(loaded.log.level, loaded.log.format)
    from daemon.app import run as run_daemon

    raise typer.Exit(run_daemon(loaded))


def _key_values(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--set")
        pairs[key.strip()] = value.strip()
    return pairs


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")] = False,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Where the demo keeps everything.")
    ] = Path("learnd-demo"),
) -> None:
    """Watch the whole loop: learn, refuse, promote, roll back (3 min)."""
    from daemon.demo import run_demo

    raise typer.Exit(run_demo(data_dir=data_dir, keep=keep))


@app.command()
def check(config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show every setting and its source; try every server that it names."""
    import asyncio

    from daemon.check import Finding, Grade, examine
    from daemon.printing import Column, say, show_json, show_table, words

    settings = _settings(config, data_dir)
    explained = settings.explain()
    if not as_json:
        show_table(
            [Column("setting"), words("value"), words("source")],
            [(one.key, one.value, one.source) for one in explained],
        )

    async def examined() -> list[Finding]:
        findings = []
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


@app.command()
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

        with _daemon(url, config, data_dir) as daemon:
            raise typer.Exit(keep_watching(daemon, interval))
    with _daemon(url, config, data_dir) as daemon:
        overview, health = daemon.get("/v1/status"), daemon.get("/healthz")
    if as_json:
        show_json({**overview, "health": health})
    else:
        screens.status(daemon.url, overview, health)


@app.command()
def flush(
    task_type: Annotated[
        str | None, typer.Option("--task-type", help="Only the line that learns from it.")
    ] = None,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Seal what waits into batches now; say which, or why nothing."""
    from daemon import screens
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        results = daemon.post("/v1/queue/flush", {"task_type": task_type})
    show_json(results) if as_json else screens.flushed(results)


@app.command("batch-size")
def batch_size(
    line: Annotated[str | None, typer.Argument(metavar="[LINE]", help="A model line.")] = None,
    size: Annotated[
        int | None, typer.Option("--set", min=1, metavar="N", help="Pin it to N events.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let it adapt again.")] = False,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show each line's batch size and why; pin one, or let it adapt again."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    if auto and size is not None:
        raise typer.BadParameter("--set pins the size, --auto releases it: give one of them")
    show: Callable[[Any], None]
    changes = auto or size is not None
    if changes and line is None:
        raise typer.BadParameter("name the model line whose batch size is to change")
    with _daemon(url, config, data_dir) as daemon:
        if line is None:
            found, show = daemon.get("/v1/queue/batch-sizes"), screens.batch_sizes
        elif changes:
            body = {"size": size, "reason": reason}
            found = daemon.post(f"/v1/queue/batch-sizes/{part(line)}", body)
            show = screens.batch_size_set
        else:
            found = daemon.get(f"/v1/queue/batch-sizes/{part(line)}")
            show = screens.batch_size
    show_json(found) if as_json else show(found)


# --- runs and versions ----------------------------------------------------------------


@runs_app.command("list")
def list_runs(
    line: Annotated[str | None, typer.Option(help="Only this model line.")] = None,
    state: Annotated[str | None, typer.Option(help="Only this state, such as failed.")] = None,
    limit: Limit = 20,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first; also meant by `learnd runs` alone."""
    from daemon import screens
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        listed = list(daemon.pages("/v1/runs", limit, line=line, state=state))
    show_json(listed) if as_json else screens.runs(listed)


RunId = Annotated[str, typer.Argument(metavar="RUN", help="As `learnd runs` shows.")]


@runs_app.command("show")
def show_run(
    run: RunId,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one run with its attempts and history; also meant by `learnd runs RUN`."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        found = daemon.get(f"/v1/runs/{part(run)}")
    show_json(found) if as_json else screens.run(found)


@runs_app.command("cancel")
def cancel_run(
    run: RunId,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """End a run and its job; what it trained on comes back in the line's next batch."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        done = daemon.post(f"/v1/runs/{part(run)}/cancel", {"reason": reason})
    show_json(done) if as_json else screens.cancelled(done)


@runs_app.command("resolve")
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
    with _daemon(url, config, data_dir) as daemon:
        done = daemon.post(f"/v1/runs/{part(run)}/resolve", {"job_id": job})
    show_json(done) if as_json else screens.resolved(done)


@app.command("node-gone")
def node_gone(
    node: Annotated[str, typer.Argument(metavar="NODE", help="As `learnd runs` names it.")],
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Give up a node that will not come back, so that others take its runs."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        done = daemon.post(f"/v1/nodes/{part(node)}/gone", {"reason": reason})
    show_json(done) if as_json else screens.node_gone(done)


@app.command()
def versions(
    line: Annotated[str | None, typer.Argument(metavar="LINE", help="A model line.")] = None,
    limit: Limit = 20,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List model lines, or one line's versions with the gate's numbers."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        if line is None:
            lines = daemon.get("/v1/models")
            show_json(lines) if as_json else screens.model_lines(lines)
            return
        listed = list(daemon.pages(f"/v1/models/{part(line)}/versions", limit))
    show_json(listed) if as_json else screens.versions(listed)


@app.command()
def promote(
    line: LineName,
    version: Annotated[str, typer.Argument(metavar="V", help="Such as 1.0.1-rc.1.")],
    force: Annotated[
        bool, typer.Option("--force", help="Overrule the gate; needs a reason.")
    ] = False,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion of its line."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    if force and not reason.strip():
        raise typer.BadParameter("--force needs a --reason, which is recorded")
    with _daemon(url, config, data_dir) as daemon:
        done = daemon.post(
            f"/v1/models/{part(line)}/promote",
            {"version": version, "force": force, "reason": reason},
        )
    show_json(done) if as_json else screens.promoted(done)


@app.command()
def rollback(
    line: LineName,
    to: Annotated[
        str | None, typer.Option("--to", metavar="V", help="A released version. [the one before]")
    ] = None,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version the champion again."""
    from daemon import screens
    from daemon.client import part
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        done = daemon.post(f"/v1/models/{part(line)}/rollback", {"to": to, "reason": reason})
    show_json(done) if as_json else screens.rolled_back(done)


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(metavar="LINE[@V]", help="A line's champion, or one version.")
    ],
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="One prompt; without it, a conversation.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="System prompt. [the line's, if it has one]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=1_048_576)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=10.0)] = 0.0,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Try a version, on the machine that has its files."""
    from daemon.chat import converse, open_chat, opening, show_token
    from daemon.client import part
    from daemon.printing import show_json

    if as_json and prompt is None:
        raise typer.BadParameter("--json needs a prompt: -p PROMPT")
    line, _, version = model.partition("@")
    with _daemon(url, config, data_dir) as daemon:
        found = daemon.get(f"/v1/models/{part(line)}/versions/{part(version or 'champion')}")
    settings = _settings(config, data_dir)
    system = system if system is not None else _system_prompt(settings, line)
    _quiet("warning")
    with open_chat(
        found["loading"],
        settings,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    ) as opened:
        if prompt is None:
            converse(opened, system)
            return
        messages = [*opening(system), {"role": "user", "content": prompt}]
        answer = opened.answer(messages, (lambda _: None) if as_json else show_token)
    if as_json:
        version = found["summary"]["version"]
        show_json({"line": line, "version": version, "prompt": prompt, "answer": answer})
    else:
        print()


def _system_prompt(settings: "Settings", line: str) -> str | None:
    """The prompt that the line trains with, when there is no doubt which."""
    configured = settings.model_lines().get(line)
    prompts = set(configured.system_prompts.values()) if configured is not None else set()
    return prompts.pop() if len(prompts) == 1 else None


def _quiet(level: str) -> None:
    """Log nothing below a level: the command has the terminal."""
    from monitoring.logs import configure

    configure(level, "console")


@app.command()
def lineage(
    text: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="EVENT_ID (a number), PRODUCER/EVENT_ID, b-BATCH, r-RUN, or LINE@VERSION.",
        ),
    ],
    after: Annotated[int | None, typer.Option(help="Show the events after this number.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 100,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Tell which versions know an event, which events made a version."""
    from urllib.parse import quote

    from daemon import screens
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        found = daemon.get(f"/v1/lineage/{quote(text, safe='/@')}", after=after, limit=limit)
    show_json(found) if as_json else screens.lineage(found)


# --- events ---------------------------------------------------------------------------


@events_app.command("list")
def list_events(
    state: Annotated[
        str | None, typer.Option(help="queued, held, quarantined, rejected, sealed, ...")
    ] = None,
    task_type: Annotated[str | None, typer.Option("--task-type")] = None,
    limit: Limit = 20,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List stored outputs, newest first."""
    from daemon import screens
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        listed = list(daemon.pages("/v1/events", limit, state=state, task_type=task_type))
    show_json(listed) if as_json else screens.events(listed)


EventNumber = Annotated[int, typer.Argument(metavar="ID", min=1, help="As `events list` shows.")]


@events_app.command("show")
def show_event(
    event: EventNumber,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one output with its feedback, batches and history."""
    from daemon import screens
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        found = daemon.get(f"/v1/events/{event}")
    show_json(found) if as_json else screens.event(found)


@events_app.command()
def approve(
    event: EventNumber,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let a held or quarantined output train."""
    _judge(event, True, reason, url, config, data_dir, as_json)


@events_app.command()
def reject(
    event: EventNumber,
    reason: Reason = "",
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Keep an output from training, also one that is queued."""
    _judge(event, False, reason, url, config, data_dir, as_json)


def _judge(
    event: int,
    approved: bool,
    reason: str,
    url: str | None,
    config: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    from daemon.printing import say, show_json

    with _daemon(url, config, data_dir) as daemon:
        judged = daemon.post(
            f"/v1/events/{event}/verdict", {"approved": approved, "reason": reason}
        )
    show_json(judged) if as_json else say(f"event {event} is {judged['state']} now")


# --- dead letters ---------------------------------------------------------------------


@letters_app.command("list")
def list_letters(
    reason: Annotated[str | None, typer.Option(help="Only this reason, such as not_json.")] = None,
    replayed: Annotated[
        bool | None,
        typer.Option("--replayed/--open", help="Only those that were replayed, or not."),
    ] = None,
    before: Annotated[
        int | None, typer.Option(metavar="ID", min=1, help="Only older ones: the next page.")
    ] = None,
    limit: Limit = 20,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    from daemon import screens
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        listed = list(
            daemon.pages("/v1/dead-letters", limit, before=before, reason=reason, replayed=replayed)
        )
    show_json(listed) if as_json else screens.dead_letters(listed)


LetterNumber = Annotated[
    int, typer.Argument(metavar="ID", min=1, help="As `dead-letters list` shows.")
]


@letters_app.command("show")
def show_letter(
    letter: LetterNumber,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with its bytes."""
    from daemon import screens
    from daemon.printing import show_json

    with _daemon(url, config, data_dir) as daemon:
        found = daemon.get(f"/v1/dead-letters/{letter}")
    show_json(found) if as_json else screens.dead_letter(found)


@letters_app.command()
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
    with _daemon(url, config, data_dir) as daemon:
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


# --- data in --------------------------------------------------------------------------


class Kind(StrEnum):
    """The kinds of event, as learning.ports.EventKind names them."""

    OUTPUT = "output"
    FEEDBACK = "feedback"


@app.command()
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
        with _daemon(url, config, data_dir) as daemon:
            report = post_file(file, daemon, kind=kind)
    else:
        settings = _settings(config, data_dir, **overrides)
        if not settings.kafka.configured:
            raise typer.BadParameter(
                "no broker is known: give --bootstrap-servers HOST:PORT, set"
                " kafka.bootstrap_servers, or send to the daemon itself with --http"
            )
        _quiet("critical")  # the client's own words about a broker that is away are ours to say
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


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)],
    task_type: Annotated[str, typer.Option("--task-type", help="What the rows are examples of.")],
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Human-labelled examples that judge, never train.")
    ] = False,
    url: Url = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Import human-labelled rows (JSONL) into the held-out set."""
    from daemon import screens
    from daemon.printing import show_json

    if not held_out:
        raise typer.BadParameter("--held-out is needed: training data comes in by `learnd send`")
    with _daemon(url, config, data_dir) as daemon:
        done = daemon.post_file("/v1/held-out", file, task_type=task_type)
    show_json(done) if as_json else screens.imported(done)
    if done["refused"] and not done["added"] and not done["duplicates"]:
        raise typer.Exit(ExitStatus.REFUSED)
