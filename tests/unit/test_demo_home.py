"""The demo's folder: what is replaced, and what is never touched."""

import fcntl
from pathlib import Path

import pytest

from daemon.demo.home import Home, NotADemoError
from daemon.installation import DATA_LOCK, DataDirInUseError
from daemon.settings import Settings
from daemon.settings_sources import load


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "demo")


def made_by_a_demo(home: Home) -> Path:
    home.data_dir.mkdir(parents=True)
    (home.data_dir / DATA_LOCK).touch()
    file = home.data_dir / "learnd.db"
    file.touch()
    return file


def test_the_data_of_an_earlier_demo_is_replaced_and_its_base_model_stays(home: Home) -> None:
    file = made_by_a_demo(home)
    home.base_model.mkdir(parents=True)

    home.clear()

    assert not file.exists()
    assert home.base_model.is_dir()


def test_data_that_no_demo_made_is_left_alone(home: Home) -> None:
    home.data_dir.mkdir(parents=True)
    mine = home.data_dir / "thesis.txt"
    mine.touch()

    with pytest.raises(NotADemoError):
        home.clear()

    assert mine.exists()


def test_a_demo_that_still_runs_is_left_alone(home: Home) -> None:
    file = made_by_a_demo(home)
    with (home.data_dir / DATA_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(DataDirInUseError):
            home.clear()

    assert file.exists()


def test_the_settings_file_says_what_the_demo_runs_with(home: Home) -> None:
    home.clear()
    home.write_config(kafka="127.0.0.1:9092", http_port=8701)

    written = load(home.config_file)
    meant = Settings(**home.settings(kafka="127.0.0.1:9092", http_port=8701))
    assert written.model_dump() == meant.model_dump()
