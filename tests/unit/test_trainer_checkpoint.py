"""Checkpoints: complete, of this training, or not used."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from finetune.trainer.checkpoint import Counts, Origin, load_checkpoint, save_checkpoint

ORIGIN = Origin(model="m", data="d", settings="s")


def counts(step: int) -> Counts:
    return Counts(step=step, trained_tokens=7, rows_seen=3, first_loss=0.1 + 0.2, last_loss=1.5)


def save(directory: Path, step: int, origin: Origin = ORIGIN) -> None:
    save_checkpoint(directory, origin, counts(step), {"weight/w": torch.full((3,), 1 / 3)})


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path) -> None:
    save(tmp_path / "new", 20)

    loaded = load_checkpoint(tmp_path / "new", ORIGIN, pytest.fail)

    assert loaded is not None
    assert loaded.counts == counts(20)
    assert torch.equal(loaded.tensors["weight/w"], torch.full((3,), 1 / 3))


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        save(tmp_path, step)

    assert [path.name for path in tmp_path.iterdir()] == ["step-00000060"]


def test_what_is_not_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    save(tmp_path, 20)

    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_it_holds_no_pickle(tmp_path: Path) -> None:
    save(tmp_path, 20)

    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["checkpoint.json", "state.safetensors"]


def test_no_checkpoint_is_no_news(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent", ORIGIN, pytest.fail) is None


@pytest.mark.parametrize("part", Origin.model_fields)
def test_one_of_another_training_is_not_used_and_it_says_what_differs(
    tmp_path: Path, part: str
) -> None:
    save(tmp_path, 20, ORIGIN.model_copy(update={part: "other"}))
    said: list[str] = []

    assert load_checkpoint(tmp_path, ORIGIN, said.append) is None
    assert said == [f"checkpoint step-00000020 is not used: it was made from another {part}"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_one_is_not_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 20)
    damage(tmp_path / "step-00000020" / name)
    said: list[str] = []

    assert load_checkpoint(tmp_path, ORIGIN, said.append) is None
    assert "damaged" in said[0]


def test_a_damaged_newest_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 20)
    kept = tmp_path / "step-00000020"
    kept.rename(tmp_path / "aside")
    save(tmp_path, 40)
    (tmp_path / "aside").rename(kept)
    truncate(tmp_path / "step-00000040" / "state.safetensors")

    loaded = load_checkpoint(tmp_path, ORIGIN, lambda _: None)

    assert loaded is not None
    assert loaded.counts.step == 20


def test_a_refused_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 20, Origin(model="other", data="d", settings="s"))

    save(tmp_path, 20)

    assert load_checkpoint(tmp_path, ORIGIN, pytest.fail) is not None
