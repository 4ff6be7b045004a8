"""`learnd finetune` as somebody types it: the true trainer, a tiny model, Ctrl-C and all."""

import asyncio
import contextlib
import errno
import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.exit_status import ExitStatus
from finetune.artifacts import ArtifactStore, verify
from finetune.trainer.protocol import MakeTinyModelRequest
from finetune.trainer_process import TrainerHost
from tests.acceptance.test_cli import LEARND, Ran, clean_environment
from tests.services import require

N_ROWS = 60
STEPS = 40
TRAINING = {
    "max_steps": STEPS,
    "gradient_accumulation": 1,
    "learning_rate": 5e-3,
    "checkpoint_every_steps": 5,
    "validate_every_steps": 20,
}
PATIENCE_SECONDS = 240


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a dataset and a configuration."""
    require("PyTorch", None if importlib.util.find_spec("torch") else "it is not installed")
    folder = tmp_path_factory.mktemp("shop")

    async def make() -> None:
        request = MakeTinyModelRequest(id="make", output_dir=str(folder / "tiny"), steps=0)
        async with (
            TrainerHost(ArtifactStore(folder / "none"), folder / "log") as host,
            host.use() as trainer,
        ):
            await trainer.request(request, lambda _: None)

    asyncio.run(make())
    pairs = [{"prompt": f"which number is {n}?", "completion": "seven"} for n in range(N_ROWS)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    config = {"model": str(folder / "tiny"), "dataset": "rows.jsonl", "training": TRAINING}
    (folder / "batch.json").write_text(json.dumps(config))
    return folder


def start(shop: Path, *words: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*LEARND, "finetune", *words],
        cwd=shop,
        env={**clean_environment(), "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def finish(process: subprocess.Popen[bytes]) -> Ran:
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
    ran = Ran(process.returncode, out.decode(), (err or b"").decode())
    assert "Traceback" not in ran.err, ran.err
    return ran


def type_(shop: Path, *words: str) -> Ran:
    return finish(start(shop, *words))


@pytest.fixture(scope="module")
def uninterrupted(shop: Path) -> Any:
    """What the whole way says, as JSON."""
    ran = type_(shop, "--config", "batch.json", "--batch-size", "8", "--tensorboard-dir", "events",
                "--output", "whole", "--json")  # fmt: skip
    assert ran.status == ExitStatus.DONE, ran.err
    assert re.search(rf"step {STEPS} of {STEPS}  loss \d\.\d+  [\d,]+ tokens/s  0 s left", ran.err)
    return ran.json


@pytest.mark.timeout(600)
def test_a_dataset_file_becomes_a_published_better_adapter(shop: Path, uninterrupted: Any) -> None:
    told = uninterrupted
    assert told["final_status"] == "succeeded"
    assert told["file_id"].startswith("file-")
    assert told["job_id"] == f"local:{Path(told['folder']).name}:1"
    assert len(Path(told["dataset_file"]).read_text().splitlines()) == 48
    manifest = verify(Path(told["artifact"]))
    assert manifest.sha256 == told["manifest_sha256"]
    assert "adapter_model.safetensors" in manifest.files
    (part,) = told["evaluation"]["slices"]
    assert part["n_rows"] == 12
    assert part["loss_after"] < 0.8 * part["loss_before"]
    assert told["evaluation"]["verdict"] == "promote"


@pytest.mark.timeout(600)
def test_the_report_has_the_curves_of_every_step(uninterrupted: Any) -> None:
    told = json.loads((Path(uninterrupted["folder"]) / "report.json").read_text())
    curve = told["curve"]
    assert curve["steps"] == list(range(1, STEPS + 1))
    assert curve["loss"][-1] < curve["loss"][0]
    assert max(curve["learning_rate"]) == pytest.approx(5e-3)
    assert all(norm > 0 for norm in curve["grad_norm"])
    assert curve["validation_steps"] == [0, 20, 40]
    assert curve["validation_loss"][-1] < curve["validation_loss"][0]
    assert told["dataset"]["training rows read"] == 48
    assert told["dataset"]["tokens of an output"]["mean"] == len("seven") + 1
    assert told["settings"]["minibatch_size"] == 8
    page = (Path(uninterrupted["folder"]) / "report.html").read_text()
    assert page.count("<polyline") == 5


@pytest.mark.timeout(600)
def test_tensorboard_reads_the_same_numbers(shop: Path, uninterrupted: Any) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(shop / "events" / Path(uninterrupted["folder"]).name))
    read.Reload()
    told = json.loads((Path(uninterrupted["folder"]) / "report.json").read_text())["curve"]
    for tag, name in (("train/loss", "loss"), ("train/gradient_norm", "grad_norm")):
        assert [one.value for one in read.Scalars(tag)] == pytest.approx(told[name])
    assert [one.step for one in read.Scalars("validation/loss")] == told["validation_steps"]
    assert len(read.Scalars("train/samples_per_second")) == STEPS


@pytest.mark.timeout(600)
def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_ends_in_the_same_weights(
    shop: Path, uninterrupted: Any
) -> None:
    words = ("--config", "batch.json", "--batch-size", "8", "--output", "broken")
    with _terminal() as (terminal, stderr):
        process = start(shop, *words, stderr=stderr)
        os.close(stderr)
        _read_until(terminal, re.compile(rb"[1-9]\d*/40"))
        process.send_signal(signal.SIGINT)
        shown = _read_until(terminal, None)
        stopped = finish(process)
    assert stopped.status == ExitStatus.INTERRUPTED, shown
    assert "tokens/s" in shown
    assert "left" in shown
    assert "interrupted" in stopped.out
    assert "the same command goes on from the last checkpoint: learnd finetune" in stopped.out
    folder = shop / "broken" / Path(uninterrupted["folder"]).name
    assert list((folder / "work" / "checkpoint").glob("step-*"))

    went_on = type_(shop, *words, "--json")
    assert went_on.status == ExitStatus.DONE, went_on.err
    told = json.loads((folder / "report.json").read_text())
    assert told["training"]["went on from step"] >= 1
    assert told["curve"]["steps"] == list(range(1, STEPS + 1))
    assert went_on.json["manifest_sha256"] == uninterrupted["manifest_sha256"]

    again = type_(shop, *words)
    assert again.status == ExitStatus.DONE
    assert again.err == ""
    assert uninterrupted["manifest_sha256"][:12] in again.out


@contextlib.contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def _read_until(terminal: int, wanted: re.Pattern[bytes] | None) -> str:
    """What is shown until `wanted` is, or until the other end is closed."""
    shown = b""
    while wanted is None or not wanted.search(shown):
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:  # what Linux says of a terminal that nobody has open
                raise
            piece = b""
        if not piece:
            assert wanted is None, shown
            break
        shown += piece
    return shown.decode()


def test_an_artifact_is_evaluated_without_training(shop: Path) -> None:
    words = ("rows.jsonl", "--provider", "scripted", "--model", "m", "--output", "judged", "--json")
    trained = type_(shop, *words)
    assert trained.status == ExitStatus.DONE, trained.err
    ran = type_(shop, *words, "--adapter", trained.json["artifact"], "--evaluate-only")
    assert ran.status == ExitStatus.DONE, ran.err
    assert ran.json["final_status"] == "evaluated"
    (part,) = ran.json["evaluation"]["slices"]
    assert part["n_rows"] == N_ROWS
    assert part["loss_after"] == pytest.approx(0.5 * part["loss_before"])
    assert ran.json["artifact"] is None


def test_only_the_dataset_is_prepared_without_a_model(shop: Path) -> None:
    ran = type_(shop, "rows.jsonl", "--prepare-only", "--validation-share", "0.5", "--output", "p")
    assert ran.status == ExitStatus.DONE, ran.err
    assert "prepared" in ran.out
    (folder,) = (shop / "p").iterdir()
    assert {file.name for file in (folder / "dataset").iterdir()} == {
        "metadata.json",
        "train.jsonl",
        "training_data.jsonl",
        "validation.jsonl",
    }
    assert len((folder / "dataset" / "validation.jsonl").read_text().splitlines()) == 30
    assert not (folder / "trainer.log").exists()


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("rows.jsonl",), ExitStatus.USAGE, "--model is needed"),
        (("--model", "m"), ExitStatus.USAGE, "name a dataset file"),
        (("missing.jsonl", "--model", "m"), ExitStatus.REFUSED, "missing.jsonl: cannot be read"),
        (("rows.jsonl", "--model", "m", "--provider", "openai"), ExitStatus.REFUSED,
         "needs remote.openai_endpoint (OPENAI_BASE_URL)"),
        (("rows.jsonl", "--model", "m", "--provider", "http"), ExitStatus.REFUSED,
         "needs remote.finetune_endpoint (FINETUNE_ENDPOINT)"),
        (("rows.jsonl", "--model", "m", "--provider", "locla"), ExitStatus.REFUSED,
         "did you mean local?"),
        (("rows.jsonl", "--model", "m", "--epochs", "0"), ExitStatus.USAGE, "training.epochs"),
        (("rows.jsonl", "--model", "m", "--set", "lora_rnak=4"), ExitStatus.USAGE,
         "did you mean lora_rank?"),
        (("rows.jsonl", "--model", "m", "--provider", "scripted", "--set", "plan=x"),
         ExitStatus.USAGE, "no act 'x'"),
        (("rows.jsonl", "--model", "m", "--prepare-only", "--evaluate-only"), ExitStatus.USAGE,
         "exclude each other"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_what_to_do(
    shop: Path, words: tuple[str, ...], status: ExitStatus, told: str
) -> None:
    ran = type_(shop, *words, "--output", "wrong")
    assert ran.status == status, ran.err
    assert told in " ".join(ran.err.split())


def test_a_training_that_fails_says_why_and_is_a_result_too(shop: Path) -> None:
    ran = type_(shop, "rows.jsonl", "--model", "m", "--provider", "scripted", "--set", "plan=fail",
                "--output", "failed", "--json")  # fmt: skip
    assert ran.status == ExitStatus.REFUSED
    assert ran.json["final_status"] == "failed"
    assert "scripted_failure" in ran.err
