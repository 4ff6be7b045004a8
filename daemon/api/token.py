"""The bearer token: made at the first start, readable by the daemon's user alone."""

import os
import secrets
from pathlib import Path

from daemon.exit_status import ExitStatus
from learning.errors import LearningError

FILE_NAME = "token"
TOKEN_BYTES = 32


class TokenUnreadableError(LearningError):
    """The token file exists and cannot be used."""

    exit_status = ExitStatus.UNREACHABLE

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}; remove the file to have a new token made at the start")
        self.path = path


class TokenMissingError(LearningError):
    """No daemon has made a token in this data directory."""

    exit_status = ExitStatus.UNREACHABLE

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"no token at {path}: no daemon was started with this data directory. `learnd run`"
            " starts one; --data-dir names another directory, LEARND_TOKEN gives a token"
        )
        self.path = path


def ensure_token(data_dir: Path) -> str:
    """The token of a data directory, made when there is none. Blocks on the disk.

    Raises TokenUnreadableError.
    """
    path = data_dir / FILE_NAME
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        # O_EXCL: of two daemons that start together one makes the file, the other reads it.
        # The mode is set by the same call, so that the token is never open to others.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(data_dir)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token


def read_token(data_dir: Path) -> str:
    """The token that a daemon made in its data directory.

    Raises TokenMissingError and TokenUnreadableError.
    """
    path = data_dir / FILE_NAME
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise TokenMissingError(path) from error
    except OSError as error:
        raise TokenUnreadableError(path, error.strerror or "cannot be read") from error
    except UnicodeDecodeError as error:
        raise TokenUnreadableError(path, "is not a token") from error
    if not token:
        raise TokenUnreadableError(path, "is empty")
    return token
