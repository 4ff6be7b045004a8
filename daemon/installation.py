"""What a daemon is known by to the others on its database, and what they have to share.

The id lies in the data directory, because that is where the files of a local run are: a
daemon that is started on it again is the same one, wherever its host name went.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import make_url

from learning.errors import LearningError

ID_FILE = "installation"
HOME_FILE = ".home"
DATA_LOCK = "learnd.lock"
DATABASE_LOCK = ".lock"
"""After the name of a SQLite file."""


class DataDirInUseError(LearningError):
    """Another daemon works in this data directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(
            f"another daemon is using {data_dir}; stop it, or give this one another data_dir"
        )
        self.data_dir = data_dir


class DatabaseInUseError(LearningError):
    """Another daemon works on this SQLite file."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"another daemon is using {file}, and a SQLite file serves one; for several daemons"
            " set database_url to a PostgreSQL database"
        )
        self.file = file


class ArtifactsElsewhereError(LearningError):
    """The artifacts directory is not the one that this database's versions lie in."""

    def __init__(self, folder: Path, home: str) -> None:
        super().__init__(
            f"{folder} is not where the versions of this database lie: all its daemons need the"
            " same artifacts_dir. If the old directory is lost for good, write"
            f" {home} into {folder / HOME_FILE}; versions whose files are missing cannot be loaded"
        )
        self.folder, self.home = folder, home


def installation_id(data_dir: Path) -> str:
    """The id of an installation, made at its first start. Blocks on the disk."""
    return _lasting(data_dir / ID_FILE)


def artifacts_home(artifacts_dir: Path) -> str | None:
    """The id of a directory of artifacts, if it has one yet. Blocks on the disk."""
    try:
        return (artifacts_dir / HOME_FILE).read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None


def make_artifacts_home(artifacts_dir: Path) -> str:
    """Make a directory of artifacts, with an id that goes wherever it is mounted or moved."""
    artifacts_dir.mkdir(parents=True, exist_ok=True)
    return _lasting(artifacts_dir / HOME_FILE)


@contextlib.contextmanager
def only_daemon_in(data_dir: Path) -> Iterator[None]:
    """Hold the data directory; the kernel lets go of it when the process ends.

    Raises DataDirInUseError.
    """
    with _locked(data_dir / DATA_LOCK, DataDirInUseError(data_dir)):
        yield


@contextlib.contextmanager
def only_daemon_on(database_url: str) -> Iterator[None]:
    """Hold a SQLite file; of any other database there may be several daemons.

    Raises DatabaseInUseError.
    """
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        yield
        return
    file = Path(url.database)
    with _locked(file.with_name(file.name + DATABASE_LOCK), DatabaseInUseError(file)):
        yield


@contextlib.contextmanager
def _locked(path: Path, taken: LearningError) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise taken from error
        yield


def _lasting(path: Path) -> str:
    """What a file says; a new one says something that no other does.

    It appears with its content in one step, so that of several daemons that make it none
    reads it half written.
    """
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    draft.write_text(f"{uuid.uuid4().hex}\n", encoding="ascii")
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path.read_text(encoding="ascii").strip()
