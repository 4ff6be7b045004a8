"""Which files are read, and that nobody can have another one read through a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from consumers.watched_files import Refused, files_of

Names = Callable[[str], tuple[list[str], list[str]]]


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    inbox = tmp_path / "inbox"
    (inbox / "old").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", "notes.txt", ".c.jsonl", "old/d.jsonl"):
        (inbox / name).touch()
    (inbox / "folder.jsonl").mkdir()
    return inbox


def names_of(watched: Path) -> tuple[list[str], list[str]]:
    """The names that are read, and why others are not."""
    found = list(files_of(watched))
    return (
        [each.name for each in found if isinstance(each, Path)],
        [f"{each.path.name}: {each.why}" for each in found if isinstance(each, Refused)],
    )


@pytest.mark.parametrize(
    ("watched", "names"),
    [
        ("inbox", ["a.jsonl", "b.jsonl"]),
        ("inbox/*", ["a.jsonl", "b.jsonl", "notes.txt"]),
        ("inbox/a.*", ["a.jsonl"]),
        ("inbox/**/*.jsonl", ["a.jsonl", "b.jsonl", "d.jsonl"]),
        ("inbox/b.jsonl", ["b.jsonl"]),
        ("inbox/none.jsonl", []),
        ("nowhere", []),
        ("nowhere/*.jsonl", []),
    ],
)
def test_a_folder_a_glob_or_a_file_stands_for_its_files(
    inbox: Path, watched: str, names: list[str]
) -> None:
    assert names_of(inbox.parent / watched) == (names, [])


def test_links_are_refused_wherever_they_lead(inbox: Path) -> None:
    (inbox / "e.jsonl").symlink_to(inbox / "a.jsonl")
    (inbox / "f.jsonl").symlink_to("/etc/passwd")
    names, refused = names_of(inbox)
    assert names == ["a.jsonl", "b.jsonl"]
    assert refused == ["e.jsonl: it is a symbolic link", "f.jsonl: it is a symbolic link"]


def test_a_folder_that_is_a_link_leads_nowhere(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.jsonl").touch()
    (inbox / "way").symlink_to(tmp_path / "secret")
    names, refused = names_of(inbox / "*" / "*.jsonl")
    assert names == ["d.jsonl"]
    assert [one.startswith("s.jsonl: it lies outside of") for one in refused] == [True]


def test_the_folder_itself_may_be_a_link_of_the_operators(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(inbox)
    assert names_of(tmp_path / "link")[0] == ["a.jsonl", "b.jsonl"]


def test_a_path_that_the_store_cannot_keep_is_refused(inbox: Path) -> None:
    deep = inbox / ("x" * 200)
    deep.mkdir()
    (deep / f"{'y' * 200}.jsonl").touch()
    names, refused = names_of(deep)
    assert names == []
    assert "256 characters" in refused[0]
