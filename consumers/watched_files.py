"""Which files a folder or a glob stands for, and which of those it must not.

Looks at names and links, opens nothing. A file that is a link, or lies outside of the
folder that was named, is refused: whoever may write into the folder must not be able to
have another file of this machine read.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILES_OF_A_FOLDER = "*.jsonl"
LONGEST_PATH = 256
"""Characters that the store keeps of an origin."""

_WILD = frozenset("*?[")


@dataclass(frozen=True)
class Refused:
    """A file that is not read, and why."""

    path: Path
    why: str


def files_of(watched: Path) -> Iterator[Path | Refused]:
    """The files that a folder (its *.jsonl), a glob or a path stands for now, by name.

    Names that begin with a dot are left out: writers use them for what is not ready. Raises
    OSError when the folder cannot be read.
    """
    root, pattern = _root_and_pattern(watched)
    root = root.resolve()
    for path in sorted(root.glob(pattern)):
        if path.name.startswith("."):
            continue
        why = _why_not(path, root)
        if why is not None:
            yield Refused(path, why)
        elif stat.S_ISREG(path.lstat().st_mode):
            yield path


def root_of(watched: Path) -> Path:
    """The folder that a folder, a glob or a path leads to; it need not be there."""
    return _root_and_pattern(watched)[0]


def _root_and_pattern(watched: Path) -> tuple[Path, str]:
    """The folder of a glob is what stands before its first part with * ? or [."""
    for depth, part in enumerate(watched.parts):
        if _WILD & set(part):
            return Path(*watched.parts[:depth]), str(Path(*watched.parts[depth:]))
    if watched.is_dir():
        return watched, FILES_OF_A_FOLDER
    return watched.parent, watched.name


def _why_not(path: Path, root: Path) -> str | None:
    if path.is_symlink():
        return "it is a symbolic link"
    if not path.resolve().is_relative_to(root):
        return f"it lies outside of {root}"
    if len(str(path)) > LONGEST_PATH:
        return f"its path has more than {LONGEST_PATH} characters"
    try:
        os.fsdecode(path).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return None
