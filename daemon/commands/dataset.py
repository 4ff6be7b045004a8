"""`learnd dataset`: look at dataset files, and make others out of them. Needs no daemon.

Reads files of any size, one row at a time; what it prints is in daemon/dataset_screens.py.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.asking import AsJson
from daemon.exit_status import ExitStatus
from finetune.datasets.flaws import Drop
from finetune.datasets.formats import Format

if TYPE_CHECKING:
    from finetune.datasets.dataset_file import DatasetFile
    from finetune.datasets.examination import Rules

commands = typer.Typer()
dataset_app = typer.Typer(help="Dataset files: validate, convert, split, and their statistics.")
commands.add_typer(dataset_app, name="dataset", no_args_is_help=True)

File = Annotated[
    Path,
    typer.Argument(metavar="FILE", exists=True, help="JSONL, or one JSON array of rows."),
]
TheFormat = Annotated[
    Format | None, typer.Option("--format", help="Of every row. [as its first rows are]")
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field", metavar="NAME=YOURS", help="A field under another name: completion=response."
    ),
]
MaxLineBytes = Annotated[
    int, typer.Option("--max-line-bytes", min=1_000, help="A longer line is a bad one.")
]
Near = Annotated[
    float,
    typer.Option(
        "--near",
        min=0.0,
        max=1.0,
        help="Likeness from which on rows are near-duplicates; 0 does not look for them.",
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="DIR", help="Count tokens: a folder of a model."),
]
MaxLength = Annotated[
    int | None, typer.Option("--max-length", min=1, help="Count the rows that are longer.")
]
Shown = Annotated[int, typer.Option("--show", min=0, help="So many findings of a kind at most.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing if a line is bad.")]

MAX_LINE_BYTES = 16_000_000
SHOWN = 20


@dataset_app.command()
def validate(
    file: File,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit status 1 for any bad line, and for any leak.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the good rows there.")
    ] = None,
    drop: Annotated[
        list[Drop] | None,
        typer.Option("--drop", help="With --out, leave out these too."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="FILE",
            exists=True,
            help="What must not be in it, such as the evaluation set.",
        ),
    ] = None,
    near: Near = 0.8,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    format: TheFormat = None,
    fields: Fields = None,
    max_line_bytes: MaxLineBytes = MAX_LINE_BYTES,
    shown: Shown = SHOWN,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Name each bad line and why; find duplicates and leaks; keep what is good.

    Without --strict the exit status is 0 as long as one row is good.
    """
    from daemon import dataset_screens
    from daemon.printing import show_json
    from finetune.datasets.derived_files import keep_good
    from finetune.datasets.examination import examine

    to_drop = set(drop or [])
    if to_drop and out is None:
        raise typer.BadParameter("--drop says what --out FILE leaves out: name the file")
    if Drop.LEAKS in to_drop and not against:
        raise typer.BadParameter("--drop leaks needs --against FILE")
    if Drop.NEAR_DUPLICATES in to_drop and not near:
        raise typer.BadParameter("--drop near-duplicates needs --near above 0")
    dataset = _opened(file, format, fields, max_line_bytes)
    others = [_opened(other, None, fields, max_line_bytes) for other in against or []]
    rules = _rules(near, tokenizer, max_length)
    with _progress(dataset, "read") as on_bytes:
        examined = examine(dataset, rules, against=others, on_bytes=on_bytes)
    made = None
    if out is not None:
        with _progress(dataset, "write") as on_bytes:
            made = keep_good(
                dataset, examined, out, drop=to_drop, overwrite=force, on_bytes=on_bytes
            )
    if as_json:
        show_json(dataset_screens.as_json(examined, made))
    else:
        dataset_screens.examination(examined, made, shown=shown)
    if not examined.good or (strict and (examined.bad.n or examined.leaks.n)):
        raise typer.Exit(ExitStatus.REFUSED)


@dataset_app.command()
def stats(
    file: File,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    format: TheFormat = None,
    fields: Fields = None,
    max_line_bytes: MaxLineBytes = MAX_LINE_BYTES,
    as_json: AsJson = False,
) -> None:
    """Show how long prompts and answers are, and what kinds of rows there are."""
    from daemon import dataset_screens
    from daemon.printing import show_json
    from finetune.datasets.examination import examine

    dataset = _opened(file, format, fields, max_line_bytes)
    rules = _rules(0.0, tokenizer, max_length)
    with _progress(dataset, "read") as on_bytes:
        examined = examine(dataset, rules, on_bytes=on_bytes)
    if as_json:
        show_json(dataset_screens.as_json(examined, None))
    else:
        dataset_screens.statistics(examined)
    if not examined.good:
        raise typer.Exit(ExitStatus.REFUSED)


@dataset_app.command()
def convert(
    file: File,
    to: Annotated[Format, typer.Option("--to", help="The format to write.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")],
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Prompts and answers as messages, where they may be text."),
    ] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Leave out what the format cannot hold.")
    ] = False,
    strict: Strict = False,
    format: TheFormat = None,
    fields: Fields = None,
    max_line_bytes: MaxLineBytes = MAX_LINE_BYTES,
    shown: Shown = SHOWN,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the rows in another format; refuse where something would be lost."""
    from dataclasses import asdict

    from daemon import dataset_screens
    from daemon.printing import show_json
    from finetune.datasets.derived_files import convert as convert_file

    dataset = _opened(file, format, fields, max_line_bytes)
    with _progress(dataset, "convert") as on_bytes:
        converted = convert_file(
            dataset,
            to,
            out,
            as_chat=chat,
            lossy=lossy,
            strict=strict,
            overwrite=force,
            on_bytes=on_bytes,
        )
    if as_json:
        show_json(asdict(converted))
    else:
        dataset_screens.converted(converted, shown=shown)
    if not converted.made.rows:
        raise typer.Exit(ExitStatus.REFUSED)


@dataset_app.command()
def split(
    file: File,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="For train.jsonl, validation.jsonl, split.json."),
    ],
    share: Annotated[
        float, typer.Option("--share", min=0.0, max=1.0, help="Of the rows that are held out.")
    ] = 0.2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another draw.")] = 0,
    stratify: Annotated[
        list[str] | None,
        typer.Option(
            "--stratify", metavar="FIELD", help="Each of its values gives its share. [task_type]"
        ),
    ] = None,
    near: Near = 0.8,
    strict: Strict = False,
    format: TheFormat = None,
    fields: Fields = None,
    max_line_bytes: MaxLineBytes = MAX_LINE_BYTES,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Split in two, the same way each time; what is alike stays on one side."""
    from daemon import dataset_screens
    from daemon.printing import show_json
    from finetune.datasets.derived_files import BadRowsError, write_sides
    from finetune.datasets.examination import TASK_TYPE_FIELDS
    from finetune.datasets.flaws import BadLine, DatasetFileError
    from finetune.datasets.splitting import SplitPlan, sides_of

    dataset = _opened(file, format, fields, max_line_bytes)
    plan = SplitPlan(share, seed, near or None, stratify or TASK_TYPE_FIELDS)

    def on_bad(line: BadLine) -> None:
        if strict:
            raise BadRowsError(dataset.path, line)

    with _progress(dataset, "read") as on_bytes:
        sides = sides_of(dataset, plan, on_bad=on_bad, on_bytes=on_bytes)
    if share and not sides.held_out.any():
        raise DatasetFileError(
            f"{file}: no row can be held out: the smallest groups of rows that are alike are too"
            " large for --share; raise --near or --share"
        )
    with _progress(dataset, "write") as on_bytes:
        told = write_sides(dataset, plan, sides, out, overwrite=force, on_bytes=on_bytes)
    show_json(told) if as_json else dataset_screens.split(told)


def _opened(
    file: Path, named: Format | None, fields: list[str] | None, max_line_bytes: int
) -> "DatasetFile":
    from finetune.datasets.dataset_file import DatasetFile, Reading
    from finetune.datasets.lines import RowLimits

    return DatasetFile(file, Reading(named, _renamed(fields or []), RowLimits(max_line_bytes)))


def _renamed(fields: list[str]) -> dict[str, str]:
    renamed = {}
    for text in fields:
        name, mark, theirs = text.partition("=")
        if not (name and mark and theirs):
            raise typer.BadParameter(f"{text!r} is not NAME=YOURS", param_hint="--field")
        renamed[name] = theirs
    return renamed


def _rules(near: float, tokenizer: Path | None, max_length: int | None) -> "Rules":
    from finetune.datasets.examination import Rules
    from finetune.datasets.tokens import token_counter

    count = token_counter(tokenizer) if tokenizer is not None else None
    return Rules(near=near or None, token_count=count, max_length=max_length)


@contextlib.contextmanager
def _progress(dataset: "DatasetFile", what: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, when somebody watches: how much of the file is done."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from daemon.printing import console

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task(what, total=dataset.n_bytes)
        yield lambda at: bar.update(task, completed=at)
