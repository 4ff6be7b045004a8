"""Checkpoints: complete, of this training, or not used."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from finetune.trainer.checkpoint import Counts, Origin, load_checkpoint, save_checkpoint
from tests.failpoints import ROOT, all_names

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


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        save(tmp_path, step)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000040", "step-00000060"]


def test_one_of_a_later_step_of_another_training_does_not_stay(tmp_path: Path) -> None:
    save(tmp_path, 90, ORIGIN.model_copy(update={"data": "other"}))

    save(tmp_path, 20)

    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020"]


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


def link(path: Path) -> None:
    aside = path.parent.parent / "elsewhere"
    path.rename(aside)
    path.symlink_to(aside)


def add_a_pickle(path: Path) -> None:
    (path.parent / "optimizer.pt").write_bytes(b"\x80\x04N.")


def put_a_pickle_there(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize(
    "damage", [truncate, flip, Path.unlink, link, add_a_pickle, put_a_pickle_there]
)
def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 20)
    save(tmp_path, 40)
    damage(tmp_path / "step-00000040" / name)
    said: list[str] = []

    loaded = load_checkpoint(tmp_path, ORIGIN, said.append)

    assert loaded is not None
    assert loaded.counts.step == 20
    assert "is not used and set aside as damaged-step-00000040" in said[0]
    assert (tmp_path / "damaged-step-00000040").is_dir()


def test_when_all_are_damaged_the_training_starts_afresh(tmp_path: Path) -> None:
    for step in (20, 40):
        save(tmp_path, step)
    for state in tmp_path.glob("*/state.safetensors"):
        truncate(state)

    assert load_checkpoint(tmp_path, ORIGIN, lambda _: None) is None
    save(tmp_path, 20)
    assert load_checkpoint(tmp_path, ORIGIN, pytest.fail) is not None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_any_file_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        save(Path(folder), 20)
        file = data.draw(st.sampled_from(sorted(Path(folder, "step-00000020").iterdir())))
        content = bytearray(file.read_bytes())
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)

        assert load_checkpoint(Path(folder), ORIGIN, lambda _: None) is None


DYING = """
import os, sys
from pathlib import Path
import torch
from finetune.trainer.checkpoint import Counts, Origin, save_checkpoint
from tests.crashing import die_at

def save(directory, step):
    counts = Counts(step=step, trained_tokens=7, rows_seen=3, first_loss=0.3, last_loss=1.5)
    origin = Origin(model="m", data="d", settings="s")
    save_checkpoint(directory, origin, counts, {"weight/w": torch.zeros(3)})

for name in sys.argv[2:]:
    directory = Path(sys.argv[1], name)
    save(directory, 20)
    save(directory, 40)
    if os.fork() == 0:
        die_at(name)
        save(directory, 60)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_crash_at_any_moment_of_the_writing_leaves_a_sound_one(tmp_path: Path) -> None:
    names = [name for name in all_names() if name.startswith("checkpoint")]
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path), *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert [int(status) for status in died.stdout.split()] == [-signal.SIGKILL] * len(names)

    for name in names:
        loaded = load_checkpoint(tmp_path / name, ORIGIN, pytest.fail)
        assert loaded is not None
        assert loaded.counts.step == (60 if name == "checkpoint named" else 40)
        save(tmp_path / name, 80)
        assert len(list((tmp_path / name).iterdir())) == 2


def test_a_refused_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 20, Origin(model="other", data="d", settings="s"))

    save(tmp_path, 20)

    assert load_checkpoint(tmp_path, ORIGIN, pytest.fail) is not None
