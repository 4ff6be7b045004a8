"""Directories that appear complete or not at all."""

from pathlib import Path

import pytest

from finetune.trainer.errors import RequestFailed
from finetune.trainer.interruption import Interrupted
from finetune.trainer.publication import published, require_vacant


def test_a_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "model"

    with published(final) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "file").write_text("a")
        assert not final.exists()

    assert (final / "sub" / "file").read_text() == "a"
    assert [path.name for path in final.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_nothing_remains_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with published(tmp_path / "model") as staged:
            (staged / "file").write_text("a")
            raise error

    with pytest.raises(error):
        write()

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_not_published(tmp_path: Path) -> None:
    with published(tmp_path / "model") as staged:
        (staged / "file").write_text("a")
        name = staged.name
    (tmp_path / "model").rename(tmp_path / name)
    (tmp_path / name / "stale").write_text("old")

    with published(tmp_path / "model") as staged:
        (staged / "file").write_text("b")

    assert [path.name for path in (tmp_path / "model").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    require_vacant(tmp_path / "model")

    with published(tmp_path / "model") as staged:
        (staged / "file").write_text("a")

    assert (tmp_path / "model" / "file").exists()


def test_an_occupied_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    with pytest.raises(RequestFailed, match="not empty") as caught:
        require_vacant(tmp_path)

    assert caught.value.code == "bad_output"


def test_a_file_in_the_way_is_a_bad_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")

    with pytest.raises(RequestFailed) as vacant:
        require_vacant(tmp_path / "file")
    with pytest.raises(RequestFailed) as below, published(tmp_path / "file" / "model"):
        pytest.fail("there is no place to write to")

    assert vacant.value.code == below.value.code == "bad_output"
