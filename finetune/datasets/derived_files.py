"""Make dataset files out of another: its good rows, its rows in another format, its two sides.

What the source does not hold is never made up, and each result is there as a whole or not
at all.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.datasets.conversion import LossyConversionError, rows_of
from finetune.datasets.dataset_file import DatasetFile
from finetune.datasets.examination import MOST_LISTED, Examination
from finetune.datasets.flaws import BadLine, DatasetFileError, Drop
from finetune.datasets.formats import Format
from finetune.datasets.splitting import Sides, SplitPlan
from finetune.datasets.writing import Output, outputs

TRAIN, HELD_OUT, ABOUT = "train.jsonl", "validation.jsonl", "split.json"

Told = Callable[[int], None]


class BadRowsError(DatasetFileError):
    """A file has bad lines, and none were to be passed over."""

    def __init__(self, path: Path, line: BadLine) -> None:
        super().__init__(
            f"{path}, line {line.line}: {line.flaw}: {line.detail}; nothing was written"
        )
        self.line = line


class RowLostError(DatasetFileError):
    """A row cannot be converted without loss."""

    def __init__(self, path: Path, line: int, error: LossyConversionError) -> None:
        super().__init__(f"{path}, line {line}: {error}. Nothing was written")
        self.line = line


@dataclass(frozen=True)
class Made:
    """A file that was made."""

    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Converted:
    """What became of a conversion. Of bad lines the first MOST_LISTED are listed."""

    made: Made
    format: Format
    to: Format
    left_out: int
    """Good rows of the source that have no row in the result: bad answers, where lossy."""
    n_bad: int
    bad: Sequence[BadLine]


def keep_good(
    dataset: DatasetFile,
    examined: Examination,
    path: Path,
    *,
    drop: Collection[Drop],
    overwrite: bool,
    on_bytes: Told,
) -> Made:
    """Write the good rows of an examined file as they are, one a line."""
    against = {
        Drop.DUPLICATES: examined.unwanted.duplicate,
        Drop.NEAR_DUPLICATES: examined.unwanted.near_duplicate,
        Drop.LEAKS: examined.unwanted.leak,
    }
    unwanted = [against[each] for each in drop]
    with outputs(path, overwrite=overwrite) as (output,):
        number = 0
        for row in dataset.rows(on_bytes):
            if isinstance(row, BadLine):
                continue
            if not any(found[number] for found in unwanted):
                output.write_raw(row.raw)
            number += 1
    return _made(output)


def convert(
    dataset: DatasetFile,
    target: Format,
    path: Path,
    *,
    as_chat: bool,
    lossy: bool,
    strict: bool,
    overwrite: bool,
    on_bytes: Told,
) -> Converted:
    """Write a file's good rows in another format. Raises RowLostError and BadRowsError."""
    bad: list[BadLine] = []
    n_bad = left_out = 0
    with outputs(path, overwrite=overwrite) as (output,):
        for row in dataset.rows(on_bytes):
            if isinstance(row, BadLine):
                if strict:
                    raise BadRowsError(dataset.path, row)
                n_bad += 1
                if len(bad) < MOST_LISTED:
                    bad.append(row)
                continue
            try:
                written = rows_of(row.example, target, as_chat=as_chat, lossy=lossy)
            except LossyConversionError as error:
                raise RowLostError(dataset.path, row.line, error) from error
            left_out += not written
            for each in written:
                output.write(each)
    return Converted(_made(output), dataset.format, target, left_out, n_bad, bad)


def write_sides(
    dataset: DatasetFile,
    plan: SplitPlan,
    sides: Sides,
    folder: Path,
    *,
    overwrite: bool,
    on_bytes: Told,
) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl and split.json; returns what the last one says.

    Rows stay as they are and in their order.
    """
    paths = [folder / name for name in (TRAIN, HELD_OUT, ABOUT)]
    with outputs(*paths, overwrite=overwrite) as (train, held_out, about):
        number = 0
        for row in dataset.rows(on_bytes):
            if isinstance(row, BadLine):
                continue
            (held_out if sides.held_out[number] else train).write_raw(row.raw)
            number += 1
        told = {
            "source": dataset.path.name,
            "format": dataset.format,
            "plan": asdict(plan),
            "train": asdict(_made(train)),
            "validation": asdict(_made(held_out)),
            "strata": {name: asdict(side) for name, side in sides.strata.items()},
            "largest_group": sides.largest_group,
            "bad_lines": sides.n_bad,
        }
        about.file.write(json.dumps(told, ensure_ascii=False, indent=2).encode() + b"\n")
    return told


def _made(output: Output) -> Made:
    return Made(output.path.name, output.rows, output.sha256)
