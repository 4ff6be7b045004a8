"""The token is made once, and for its owner's eyes."""

import stat
from pathlib import Path

import pytest

from daemon.api.token import TokenMissingError, TokenUnreadableError, ensure_token, read_token


def test_a_token_is_made_once_and_then_read(tmp_path: Path) -> None:
    token = ensure_token(tmp_path)
    assert len(token) >= 43
    assert ensure_token(tmp_path) == token
    assert read_token(tmp_path) == token


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    ensure_token(tmp_path)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_two_daemons_have_two_tokens(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert ensure_token(tmp_path / "a") != ensure_token(tmp_path / "b")


def test_a_directory_without_a_daemon_is_said(tmp_path: Path) -> None:
    with pytest.raises(TokenMissingError, match="learnd run"):
        read_token(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff"])
def test_a_broken_file_is_said_and_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(TokenUnreadableError, match="remove the file"):
        ensure_token(tmp_path)
