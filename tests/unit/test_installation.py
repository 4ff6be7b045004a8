"""What a data directory and a directory of artifacts are known by."""

from pathlib import Path

import pytest

from daemon.installation import (
    HOME_FILE,
    DatabaseInUseError,
    DataDirInUseError,
    artifacts_home,
    installation_id,
    make_artifacts_home,
    only_daemon_in,
    only_daemon_on,
)
from daemon.store.database import sqlite_url


def test_an_installation_keeps_its_id(tmp_path: Path) -> None:
    first = installation_id(tmp_path)

    assert installation_id(tmp_path) == first
    assert 0 < len(first) <= 32


def test_two_installations_have_two_ids(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    assert installation_id(tmp_path) != installation_id(tmp_path / "other")


def test_a_directory_of_artifacts_is_the_same_wherever_it_is_mounted(tmp_path: Path) -> None:
    assert artifacts_home(tmp_path / "here") is None
    home = make_artifacts_home(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")

    assert make_artifacts_home(tmp_path / "there") == artifacts_home(tmp_path / "there") == home


def test_an_operator_may_write_the_id_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / HOME_FILE).write_text("abc\n")

    assert make_artifacts_home(tmp_path) == "abc"


def test_nothing_but_the_id_is_left_behind(tmp_path: Path) -> None:
    make_artifacts_home(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [HOME_FILE]


def test_a_data_directory_serves_one_daemon(tmp_path: Path) -> None:
    with (
        only_daemon_in(tmp_path),
        pytest.raises(DataDirInUseError, match="another data_dir"),
        only_daemon_in(tmp_path),
    ):
        pass
    with only_daemon_in(tmp_path):
        pass


def test_a_sqlite_file_serves_one_daemon(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "learnd.db")
    with (
        only_daemon_on(url),
        pytest.raises(DatabaseInUseError, match=r"learnd\.db.*PostgreSQL"),
        only_daemon_on(url),
    ):
        pass
    with only_daemon_on(url):
        pass


def test_other_databases_serve_several(tmp_path: Path) -> None:
    for url in ("postgresql+psycopg://me@db/learnd", "sqlite://"):
        with only_daemon_on(url), only_daemon_on(url):
            pass
