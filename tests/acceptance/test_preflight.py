"""What a machine cannot train is said before any training: by `learnd check`, and by a daemon.

The real commands, and where PyTorch is broken, a real one that cannot be imported.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.services.learnd import ROOT, Learnd

EVENT = {"producer": "p", "task_id": "t", "task_type": "coding", "prompt": "a", "output": "b"}


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """As much of a model as is looked at before it is loaded."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    return base


@pytest.fixture
def learnd(tmp_path: Path, base_model: Path) -> Iterator[Learnd]:
    settings = {
        "finetune": {"base_model": str(base_model)},
        "lines": {
            "coding": {},
            "poems": {"training": {"attention": "flash_attention_2"}},
        },
    }
    with Learnd(tmp_path, settings) as installed:
        yield installed


@pytest.fixture
def without_torch(tmp_path: Path) -> Mapping[str, str]:
    """An environment in which PyTorch is found, and cannot be imported."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('libtorch.so is missing')\n")
    return {"PYTHONPATH": os.pathsep.join([str(broken), str(ROOT)])}


def findings(printed: str) -> dict[str, tuple[str, str]]:
    return {
        one["subject"]: (one["grade"], one["detail"]) for one in json.loads(printed)["findings"]
    }


def test_check_asks_the_trainer_what_each_line_could_be_trained_with(learnd: Learnd) -> None:
    pytest.importorskip("torch")
    found = findings(learnd.command("check", "--json", status=1))
    grade, detail = found["training of poems"]
    assert grade == "bad"
    assert "set attention: auto" in detail
    (others,) = [subject for subject in found if subject.startswith("training of coding")]
    assert found[others] == ("ok", "on cpu in fp32")
    assert not learnd.data_dir.exists()


def test_check_names_the_remedy_where_the_training_libraries_do_not_work(
    learnd: Learnd, without_torch: Mapping[str, str]
) -> None:
    found = findings(learnd.command("check", "--json", status=1, environment=without_torch))
    grade, detail = found["training of poems"]
    assert grade == "bad"
    assert "libtorch.so is missing; install learnd with its train extra" in detail


def test_a_daemon_that_cannot_train_says_so_and_takes_events(
    learnd: Learnd, without_torch: Mapping[str, str]
) -> None:
    learnd.launch(environment=without_torch)
    learnd.wait_until("it is up", learnd.is_up)

    def health() -> Any:
        return learnd.probe("/healthz").json()

    def warning() -> str:
        return str(health()["checks"]["training"]["detail"])

    said = learnd.wait_until("the warning", warning)
    assert "training of coding" in said
    assert "install learnd with its train extra" in said
    assert health()["healthy"]
    assert learnd.told(event="this machine cannot train")
    assert learnd.probe("/readyz").status_code == 200
    assert learnd.post("/v1/outputs", EVENT).is_success
    assert "install learnd with its train extra" in " ".join(learnd.command("status").split())
    assert learnd.stop().status == 0
