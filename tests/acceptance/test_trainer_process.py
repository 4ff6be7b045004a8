"""The true trainer, through its pipes: what it makes, what it refuses, and how it dies.

One process is kept warm for most of the tests, because importing the training libraries
takes longer than all they ask for. Nothing here waits for a clock, only for messages.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import pytest

pytest.importorskip("torch")

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from daemon.demo.tasks import coding_example
from finetune.trainer.protocol import (
    ChatMessage,
    Done,
    EvaluateProgress,
    EvaluateRequest,
    EvaluateResult,
    ExampleScore,
    Failed,
    FailureCode,
    GenerateRequest,
    GenerateResult,
    Heartbeat,
    MakeTinyModelProgress,
    MakeTinyModelRequest,
    MakeTinyModelResult,
    Message,
    ModelRef,
    Note,
    Precision,
    Ready,
    Request,
    Token,
    TrainingSettings,
    TrainProgress,
    TrainRequest,
    TrainResult,
    encode_line,
    parse_message,
)

END_SECONDS = 60
"""Until a process that should end by itself counts as one that does not."""

TOKENIZER_FILES = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"}

MEMORY = ("add three to x", "x + 3")
STEPS = 80
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "minibatch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate": 3e-3,
    "lora_dropout": 0.1,
    "checkpoint_every_steps": 5,
    "seed": 3,
}


class Trainer:
    """A trainer process as its daemon sees it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "finetune.trainer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.first_word = self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()
        self.stdin.close()
        self.stdout.close()

    def say(self, request: Request) -> None:
        self.write(encode_line(request))

    def write(self, line: bytes) -> None:
        self.stdin.write(line)
        self.stdin.flush()

    def hear(self) -> Message:
        line = self.stdout.readline()
        assert line, "the trainer has closed its stdout"
        return parse_message(line)

    def hear_until(self, wanted: Callable[[Message], bool]) -> list[Message]:
        heard = [self.hear()]
        while not wanted(heard[-1]):
            heard.append(self.hear())
        return heard

    def hear_all(self) -> list[Message]:
        return self.hear_until(lambda message: isinstance(message, Done | Failed))

    def ask(self, request: Request) -> list[Message]:
        self.say(request)
        heard = self.hear_all()
        assert {message.id for message in heard if not isinstance(message, Ready)} == {request.id}
        return heard

    def fail(self, request: Request) -> Failed:
        answer = self.ask(request)[-1]
        assert isinstance(answer, Failed), answer
        return answer

    def make(self, request: MakeTinyModelRequest) -> MakeTinyModelResult:
        result = self._result(request)
        assert isinstance(result, MakeTinyModelResult)
        return result

    def train(self, request: TrainRequest) -> TrainResult:
        result = self._result(request)
        assert isinstance(result, TrainResult)
        return result

    def evaluate(self, request: EvaluateRequest) -> EvaluateResult:
        result = self._result(request)
        assert isinstance(result, EvaluateResult)
        return result

    def generate(self, request: GenerateRequest) -> GenerateResult:
        result = self._result(request)
        assert isinstance(result, GenerateResult)
        return result

    def _result(self, request: Request) -> object:
        answer = self.ask(request)[-1]
        assert isinstance(answer, Done), answer
        return answer.result

    def end(self) -> int:
        return self.process.wait(END_SECONDS)


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    """Warm, and asked by all tests that do not end it."""
    with Trainer() as warm:
        yield warm


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def base(trainer: Trainer, place: Path) -> str:
    """A tiny model with random weights."""
    directory = place / "base"
    trainer.make(MakeTinyModelRequest(id="base", output_dir=str(directory), steps=0))
    return str(directory)


@pytest.fixture(scope="module")
def rows(place: Path) -> Path:
    rng = Random(1)
    return write_rows(place / "rows.jsonl", [coding_example(rng) for _ in range(24)])


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    lines = (json.dumps({"prompt": prompt, "completion": text}) + "\n" for prompt, text in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def training(model: ModelRef, rows: Path, place: Path, **settings: object) -> TrainRequest:
    """Writes to ``place``/output and keeps its checkpoints beside it."""
    return TrainRequest(
        id=f"train {place.name}",
        model=model,
        train_file=str(rows),
        output_dir=str(place / "output"),
        checkpoint_dir=str(place / "checkpoints"),
        settings=TrainingSettings.model_validate(SETTINGS | settings),
    )


def short_training(model: ModelRef, rows: Path, place: Path, **settings: object) -> TrainRequest:
    return training(model, rows, place, **({"max_steps": 2} | settings))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def adapted(trainer: Trainer, base: str, rows: Path, place: Path) -> tuple[Path, TrainResult]:
    """A LoRA training that nothing interrupted."""
    (place / "straight-lora").mkdir()
    request = training(ModelRef(base_model=base), rows, place / "straight-lora")
    return Path(request.output_dir), trainer.train(request)


@pytest.fixture(scope="module")
def full(trainer: Trainer, base: str, rows: Path, place: Path) -> tuple[Path, TrainResult]:
    """A training of all weights that nothing interrupted."""
    (place / "straight-full").mkdir()
    request = training(ModelRef(base_model=base), rows, place / "straight-full", method="full")
    return Path(request.output_dir), trainer.train(request)


@pytest.fixture(scope="module")
def memory(trainer: Trainer, base: str, place: Path) -> str:
    """A model that has learned MEMORY by heart."""
    (place / "memory").mkdir()
    rows = write_rows(place / "memory.jsonl", [MEMORY])
    request = training(
        ModelRef(base_model=base),
        rows,
        place / "memory",
        method="full",
        max_steps=40,
        learning_rate=1e-2,
    )
    trainer.train(request)
    return request.output_dir


# --- the process ------------------------------------------------------------------------------


def test_it_says_first_that_it_is_ready_and_who_it_is(trainer: Trainer) -> None:
    assert trainer.first_word == Ready(pid=trainer.process.pid)


@pytest.mark.parametrize(
    ("line", "request_id"),
    [
        (b"\xff\x00 not JSON", None),
        (b"[1, 2]", None),
        (b'{"id": 7, "do": "train"}', None),
        (b'{"id": "a", "do": "dream"}', "a"),
        (b'{"id": "b", "do": "train"}', "b"),
        (b'{"id": "c", "do": "make_tiny_model", "output_dir": "x", "steps": -1}', "c"),
        (b"[" * 100_000, None),
    ],
    ids=range(7),
)
def test_junk_is_answered_and_survived(
    trainer: Trainer, line: bytes, request_id: str | None
) -> None:
    trainer.write(line + b"\n")

    (answer,) = trainer.hear_all()

    assert isinstance(answer, Failed)
    assert (answer.id, answer.error) == (request_id, "bad_request")


def test_requests_are_answered_in_order(trainer: Trainer, base: str) -> None:
    ids = ["first", "second", "third"]
    for request_id in ids:
        trainer.say(
            GenerateRequest(
                id=request_id,
                model=ModelRef(base_model=base),
                messages=(ChatMessage(role="user", content="a"),),
                max_new_tokens=1,
            )
        )

    answers = [trainer.hear_all()[-1] for _ in ids]

    assert [answer.id for answer in answers if isinstance(answer, Done)] == ids


def test_idle_it_ends_with_its_stdin() -> None:
    with Trainer() as idle:
        idle.stdin.close()

        assert idle.end() == 0


def test_idle_it_ends_on_sigterm() -> None:
    with Trainer() as idle:
        idle.process.terminate()

        assert idle.end() == 0


def test_busy_it_beats_and_dies_with_its_stdin_at_once(
    base: str, rows: Path, tmp_path: Path
) -> None:
    with Trainer() as orphan:
        request = training(ModelRef(base_model=base), rows, tmp_path, max_steps=1_000_000)
        orphan.say(request)
        orphan.hear_until(lambda message: message == Heartbeat(id=request.id))
        orphan.hear_until(lambda message: isinstance(message, TrainProgress))
        orphan.stdin.close()

        assert orphan.end() == -signal.SIGKILL


# --- training ---------------------------------------------------------------------------------


def test_a_lora_training_writes_an_adapter_and_a_tokenizer_and_nothing_else(
    adapted: tuple[Path, TrainResult],
) -> None:
    directory, result = adapted

    assert set(files(directory)) == ADAPTER_FILES | TOKENIZER_FILES
    assert result.steps == STEPS
    assert result.epochs == pytest.approx(STEPS * 4 / 24)
    assert (result.rows, result.rows_skipped, result.rows_truncated) == (24, 0, 0)
    assert result.all_finite
    assert result.resumed_from_step is None
    assert result.first_loss is not None
    assert result.final_loss is not None
    assert result.final_loss < result.first_loss
    assert result.weight_delta_norm is not None
    assert result.weight_delta_norm > 0


def test_a_full_training_writes_a_model_and_a_tokenizer_and_nothing_else(
    full: tuple[Path, TrainResult], base: str
) -> None:
    directory, result = full

    assert set(files(directory)) == MODEL_FILES | TOKENIZER_FILES
    before = load_file(Path(base) / "model.safetensors")
    after = load_file(directory / "model.safetensors")
    squares = [
        (after[name].double() - weight.double()).square().sum().item()
        for name, weight in before.items()
    ]
    assert result.weight_delta_norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-9)


def test_it_counts_each_output_token_that_it_learned_from(
    trainer: Trainer, base: str, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [("a", "12"), ("b", "é"), ("c", "1234")])

    request = short_training(
        ModelRef(base_model=base), rows, tmp_path, max_steps=None, epochs=3, method="full"
    )
    result = trainer.train(request)

    # Bytes of the outputs, and an end each.
    assert result.trained_tokens == 3 * (2 + 1 + 2 + 1 + 4 + 1)
    assert result.steps == 3
    assert result.epochs == 3.0


def test_progress_counts_up_to_the_last_step(
    trainer: Trainer, base: str, rows: Path, tmp_path: Path
) -> None:
    heard = trainer.ask(short_training(ModelRef(base_model=base), rows, tmp_path, max_steps=3))

    progress = [message for message in heard if isinstance(message, TrainProgress)]
    assert progress[0].step == 1
    assert (progress[-1].step, progress[-1].total_steps) == (3, 3)
    assert progress[-1].seconds_left == 0


def hears_of_step(step: int) -> Callable[[Message], bool]:
    return lambda message: isinstance(message, TrainProgress) and message.step >= step


def timeless(result: TrainResult) -> TrainResult:
    """The result without the times, which differ. Its curve has each step once, killed or not."""
    curve = result.curve.model_copy(update={"seconds": ()})
    return result.model_copy(update={"seconds": 0.0, "resumed_from_step": None, "curve": curve})


def test_killed_and_resumed_a_lora_training_ends_in_the_same_bytes(
    trainer: Trainer, base: str, rows: Path, adapted: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    request = training(ModelRef(base_model=base), rows, tmp_path)
    with Trainer() as doomed:
        doomed.say(request)
        doomed.hear_until(hears_of_step(6))
        os.killpg(doomed.process.pid, signal.SIGKILL)
        assert doomed.end() == -signal.SIGKILL
    assert not Path(request.output_dir).exists()

    result = trainer.train(request)

    straight, straight_result = adapted
    assert result.resumed_from_step is not None
    assert result.resumed_from_step >= 5
    assert result.resumed_from_step % 5 == 0
    assert files(Path(request.output_dir)) == files(straight)
    assert timeless(result) == timeless(straight_result)


def test_on_sigterm_a_full_training_writes_a_checkpoint_and_resumes_in_the_same_bytes(
    trainer: Trainer, base: str, rows: Path, full: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    request = training(
        ModelRef(base_model=base), rows, tmp_path, method="full", checkpoint_every_steps=1000
    )
    with Trainer() as asked:
        asked.say(request)
        asked.hear_until(hears_of_step(1))
        asked.process.terminate()
        answer = asked.hear_all()[-1]
        assert asked.end() == 0
    assert isinstance(answer, Failed)
    assert answer.error == "interrupted"

    result = trainer.train(request)

    straight, straight_result = full
    assert result.resumed_from_step is not None
    assert result.resumed_from_step >= 1
    assert files(Path(request.output_dir)) == files(straight)
    assert result.trained_tokens == straight_result.trained_tokens


def test_a_checkpoint_of_other_data_is_not_used_and_it_says_so(
    trainer: Trainer, base: str, rows: Path, tmp_path: Path
) -> None:
    request = short_training(ModelRef(base_model=base), rows, tmp_path, checkpoint_every_steps=1)
    trainer.train(request)
    others = write_rows(tmp_path / "others.jsonl", [("a", "b")])
    heard = trainer.ask(
        request.model_copy(
            update={"train_file": str(others), "output_dir": str(tmp_path / "second")}
        )
    )

    answer = heard[-1]
    assert isinstance(answer, Done)
    assert isinstance(answer.result, TrainResult)
    assert answer.result.resumed_from_step is None
    assert ["another data" in note.text for note in heard if isinstance(note, Note)] == [True]


def test_a_damaged_checkpoint_is_not_used_and_it_says_so(
    trainer: Trainer, base: str, rows: Path, tmp_path: Path
) -> None:
    request = short_training(
        ModelRef(base_model=base), rows, tmp_path, max_steps=3, checkpoint_every_steps=1
    )
    trainer.train(request)
    before, newest = sorted(Path(request.checkpoint_dir).glob("*/state.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    heard = trainer.ask(request.model_copy(update={"output_dir": str(tmp_path / "second")}))

    assert ["damaged" in note.text for note in heard if isinstance(note, Note)] == [True]
    answer = heard[-1]
    assert isinstance(answer, Done)
    assert isinstance(answer.result, TrainResult)
    assert f"step-{answer.result.resumed_from_step:08d}" == before.parent.name
    assert files(tmp_path / "second") == files(Path(request.output_dir))


def test_training_continues_its_parent_adapter(
    trainer: Trainer, base: str, rows: Path, adapted: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    parent, parent_result = adapted

    request = short_training(ModelRef(base_model=base, adapter=str(parent)), rows, tmp_path)
    result = trainer.train(request)

    assert result.first_loss is not None
    assert parent_result.first_loss is not None
    assert result.first_loss < parent_result.first_loss
    before = load_file(parent / "adapter_model.safetensors")
    after = load_file(Path(request.output_dir) / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert result.weight_delta_norm is not None
    assert result.weight_delta_norm == pytest.approx(change(before, after), rel=1e-6)


def change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Norm of the change of alpha/rank * B A, multiplied out."""
    scale = 32 / 16
    squares = []
    for name_a in before:
        if "lora_A" in name_a:
            name_b = name_a.replace("lora_A", "lora_B")
            new, old = (w[name_b].double() @ w[name_a].double() for w in (after, before))
            squares.append((scale * (new - old)).square().sum().item())
    return math.sqrt(sum(squares))


def test_a_full_training_merges_its_parent_adapter(
    trainer: Trainer, base: str, rows: Path, adapted: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    parent = ModelRef(base_model=base, adapter=str(adapted[0]))
    request = short_training(parent, rows, tmp_path, method="full", learning_rate=1e-9)
    trainer.train(request)

    scores = trainer.evaluate(
        EvaluateRequest(
            id="merged",
            models={"parent": parent, "merged": ModelRef(base_model=request.output_dir)},
            examples_file=str(rows),
        )
    )

    losses = {name: [e.loss for e in model.examples] for name, model in scores.models.items()}
    assert losses["merged"] == pytest.approx(losses["parent"], abs=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_trains_in_lower_precision_too(
    trainer: Trainer, base: str, rows: Path, tmp_path: Path, precision: Precision
) -> None:
    result = trainer.train(
        short_training(
            ModelRef(base_model=base), rows, tmp_path, precision=precision, checkpoint_every_steps=1
        )
    )

    assert result.precision == precision
    assert result.all_finite
    assert result.weight_delta_norm


def test_activation_checkpointing_changes_no_result(
    trainer: Trainer, base: str, rows: Path, tmp_path: Path
) -> None:
    losses = []
    for recompute in (False, True):
        place = tmp_path / str(recompute)
        request = short_training(
            ModelRef(base_model=base), rows, place, gradient_checkpointing=recompute
        )
        losses.append(trainer.train(request).final_loss)

    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_without_an_output_are_skipped_by_name(
    trainer: Trainer, base: str, tmp_path: Path
) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl", [("a", "b"), ("a", " "), ("a", "c<|eos|>U:"), ("a", "x" * 99)]
    )

    result = trainer.train(short_training(ModelRef(base_model=base), rows, tmp_path, max_length=20))

    assert [(row.line, row.reason) for row in result.skipped] == [
        (2, "the output is empty"),
        (3, "the text contains the model's control token <|eos|>"),
    ]
    assert (result.rows, result.rows_skipped, result.rows_truncated) == (4, 2, 1)


@pytest.mark.parametrize("contents", [[], [("a", "")]], ids=["no row", "an empty output"])
def test_nothing_to_learn_is_a_result_that_the_gate_can_refuse(
    trainer: Trainer, base: str, tmp_path: Path, contents: list[tuple[str, str]]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", contents)

    result = trainer.train(short_training(ModelRef(base_model=base), rows, tmp_path))

    assert (result.steps, result.trained_tokens, result.weight_delta_norm) == (0, 0, 0.0)
    assert (result.first_loss, result.final_loss, result.all_finite) == (None, None, True)
    assert set(files(tmp_path / "output")) == ADAPTER_FILES | TOKENIZER_FILES


@pytest.fixture(scope="module")
def poisoned(base: str, place: Path) -> str:
    """A base with one weight that is not a number."""
    directory = place / "poisoned"
    shutil.copytree(base, directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_loss_that_is_not_finite_stops_the_training_and_is_in_the_result(
    trainer: Trainer, poisoned: str, rows: Path, tmp_path: Path, method: str
) -> None:
    result = trainer.train(training(ModelRef(base_model=poisoned), rows, tmp_path, method=method))

    assert not result.all_finite
    assert (result.steps, result.final_loss) == (0, None)


def test_a_dataset_that_is_none_is_named_by_its_line(
    trainer: Trainer, base: str, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')

    answer = trainer.fail(short_training(ModelRef(base_model=base), rows, tmp_path))

    assert answer.error == "bad_dataset"
    assert "rows.jsonl, line 2" in answer.message


def test_an_output_directory_in_use_is_refused(
    trainer: Trainer, base: str, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "precious").touch()

    answer = trainer.fail(short_training(ModelRef(base_model=base), rows, tmp_path))

    assert answer.error == "bad_output"
    assert set(files(tmp_path / "output")) == {"precious"}


# --- models that are none ---------------------------------------------------------------------


def absent(model: Path) -> None:
    shutil.rmtree(model)


def pickled(model: Path) -> None:
    for name in ("model", "adapter_model"):
        weights = model / f"{name}.safetensors"
        if weights.exists():
            weights.unlink()
            torch.save({}, model / f"{name}.bin")


def with_a_pickle_beside(model: Path) -> None:
    torch.save({}, model / "adapter_model.bin")


def truncated(model: Path) -> None:
    (weights,) = model.glob("*model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])


def with_a_weight_missing(model: Path) -> None:
    (path,) = model.glob("*model.safetensors")
    weights = load_file(path)
    del weights[max(weights)]
    save_file(weights, path, metadata={"format": "pt"})


def with_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "mine.py").write_text("raise SystemExit('code of the model has run')\n")


def with_a_module_to_import(model: Path) -> None:
    config = json.loads((model / "adapter_config.json").read_text())
    config["megatron_config"] = {"a": 1}
    (model / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("spoil", [absent, pickled, truncated, with_a_weight_missing, with_code])
def test_a_base_model_that_is_not_whole_or_not_safe_is_refused(
    trainer: Trainer, base: str, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    shutil.copytree(base, tmp_path / "model")
    spoil(tmp_path / "model")

    answer = trainer.fail(generation(ModelRef(base_model=str(tmp_path / "model"))))

    assert answer.error == "bad_model"
    assert str(tmp_path / "model") in answer.message


REFUSED = (with_a_pickle_beside, with_a_module_to_import)


@pytest.mark.parametrize(
    "spoil",
    [
        absent,
        pickled,
        with_a_pickle_beside,
        truncated,
        with_a_weight_missing,
        with_a_module_to_import,
    ],
)
def test_an_adapter_that_is_not_whole_or_not_safe_is_refused(
    trainer: Trainer,
    base: str,
    adapted: tuple[Path, TrainResult],
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    shutil.copytree(adapted[0], tmp_path / "model")
    spoil(tmp_path / "model")

    answer = trainer.fail(generation(ModelRef(base_model=base, adapter=str(tmp_path / "model"))))

    assert answer.error == "bad_model"
    assert str(tmp_path / "model") in answer.message
    # And not because the import failed, or the pickle did not load.
    assert ("refused" in answer.message) == (spoil in REFUSED)


def test_layers_that_the_model_does_not_have_are_refused(
    trainer: Trainer, base: str, rows: Path, tmp_path: Path
) -> None:
    answer = trainer.fail(
        short_training(ModelRef(base_model=base), rows, tmp_path, target_modules=("nowhere",))
    )

    assert answer.error == "bad_model"
    assert "nowhere" in answer.message


# --- evaluation -------------------------------------------------------------------------------


def score_alone(directory: str, adapter: str | None, prompt: str, output: str) -> ExampleScore:
    """One example by itself, without padding, straight from the definition."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    if adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    given = tokenizer(f"<|bos|>U:{prompt}\nA:")["input_ids"]
    wanted = tokenizer(f"{output}<|eos|>")["input_ids"]
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([given + wanted])).logits[0].double()
    predictions = logits[len(given) - 1 : -1]
    nll = -predictions.log_softmax(-1)[range(len(wanted)), wanted].sum().item()
    return ExampleScore(
        loss=nll / (len(output.encode()) + 1),
        match=predictions.argmax(-1).tolist() == wanted,
        tokens=len(wanted),
    )


def test_scores_are_what_their_definition_says_in_file_order_for_each_model(
    trainer: Trainer,
    base: str,
    adapted: tuple[Path, TrainResult],
    memory: str,
    tmp_path: Path,
) -> None:
    rng = Random(1)
    examples = [
        ("naïve", "é — 😀"),
        *(coding_example(rng) for _ in range(13)),
        MEMORY,
        ("x" * 90, ""),
    ]
    models = {
        "adapted": ModelRef(base_model=base, adapter=str(adapted[0])),
        "base": ModelRef(base_model=base),
        "memory": ModelRef(base_model=memory),
        "again": ModelRef(base_model=base, adapter=str(adapted[0])),
    }

    result = trainer.evaluate(
        EvaluateRequest(
            id="scores",
            models=models,
            examples_file=str(write_rows(tmp_path / "examples.jsonl", examples)),
            minibatch_size=5,
        )
    )

    assert list(result.models) == list(models)
    assert result.models["again"] == result.models["adapted"]
    for name in ("base", "adapted", "memory"):
        scores, model = result.models[name].examples, models[name]
        assert len(scores) == len(examples)
        assert result.models[name].all_finite
        for place in (0, 1, 2, 14, 15):
            expected = score_alone(model.base_model, model.adapter, *examples[place])
            assert scores[place].loss == pytest.approx(expected.loss, rel=1e-4)
            assert (scores[place].match, scores[place].tokens) == (expected.match, expected.tokens)
    assert result.models["memory"].examples[14].match
    assert not result.models["base"].examples[14].match


def test_an_evaluation_says_how_far_it_is(trainer: Trainer, base: str, rows: Path) -> None:
    heard = trainer.ask(
        EvaluateRequest(
            id="progress",
            models={"champion": ModelRef(base_model=base), "candidate": ModelRef(base_model=base)},
            examples_file=str(rows),
        )
    )

    last = {m.model: (m.done, m.total) for m in heard if isinstance(m, EvaluateProgress)}
    assert last == {"champion": (24, 24), "candidate": (24, 24)}


def test_a_model_whose_output_is_not_finite_matches_nothing(
    trainer: Trainer, poisoned: str, base: str, rows: Path
) -> None:
    models = {"poisoned": ModelRef(base_model=poisoned), "base": ModelRef(base_model=base)}

    result = trainer.evaluate(
        EvaluateRequest(id="poisoned", models=models, examples_file=str(rows))
    )

    assert (result.models["poisoned"].all_finite, result.models["base"].all_finite) == (False, True)
    assert all(
        (score.loss, score.match) == (None, False) for score in result.models["poisoned"].examples
    )


# --- generation -------------------------------------------------------------------------------


def generation(model: ModelRef, **changes: object) -> GenerateRequest:
    request = GenerateRequest(
        id="generate",
        model=model,
        messages=(ChatMessage(role="user", content="add three to x"),),
        max_new_tokens=40,
    )
    return request.model_copy(update=changes)


def test_greedy_generation_is_that_of_the_library(
    trainer: Trainer, full: tuple[Path, TrainResult], memory: str
) -> None:
    for directory, prompt in (
        (memory, MEMORY[0]),
        (str(full[0]), "length of items"),
        (memory, "é"),
    ):
        model: Any = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        given = tokenizer(f"<|bos|>U:{prompt}\nA:", return_tensors="pt")
        drawn = model.generate(
            **given,
            max_new_tokens=40,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        whole = drawn.sequences[0]
        new = whole[given["input_ids"].shape[1] :]

        result = trainer.generate(
            generation(
                ModelRef(base_model=directory),
                messages=(ChatMessage(role="user", content=prompt),),
            )
        )

        assert result.text == tokenizer.decode(new, skip_special_tokens=True)
        assert result.tokens == int((new != tokenizer.eos_token_id).sum())
        likelihoods = [
            float(logits[0].log_softmax(dim=-1)[token])
            for logits, token in zip(drawn.logits, new, strict=True)
        ]
        assert result.mean_logprob == pytest.approx(sum(likelihoods) / len(likelihoods), abs=1e-4)
        assert result.finish == ("stop" if new[-1] == tokenizer.eos_token_id else "length")


def test_an_answer_stops_at_the_end_of_turn(trainer: Trainer, memory: str) -> None:
    result = trainer.generate(generation(ModelRef(base_model=memory)))

    assert (result.text, result.finish) == (MEMORY[1], "stop")


def test_the_pieces_add_up_to_the_answer(
    trainer: Trainer, base: str, adapted: tuple[Path, TrainResult]
) -> None:
    model = ModelRef(base_model=base, adapter=str(adapted[0]))

    heard = trainer.ask(generation(model, temperature=1.5, seed=1))

    answer = heard[-1]
    assert isinstance(answer, Done)
    assert isinstance(answer.result, GenerateResult)
    pieces = [message.text for message in heard if isinstance(message, Token)]
    assert "".join(pieces) == answer.result.text
    assert len(pieces) > 1


def test_a_drawn_answer_follows_from_its_seed(trainer: Trainer, base: str) -> None:
    first, again, other = (
        trainer.generate(generation(ModelRef(base_model=base), temperature=1.0, seed=seed)).text
        for seed in (1, 1, 2)
    )

    assert first == again != other


def test_an_answer_ends_where_the_model_can_hold_no_more(trainer: Trainer, base: str) -> None:
    long = ChatMessage(role="user", content="x" * 1010)

    result = trainer.generate(generation(ModelRef(base_model=base), messages=(long,)))

    # <|bos|>U: and \nA: around it, in 1024 positions.
    assert (result.tokens, result.finish) == (1024 - 1010 - 6, "length")


@pytest.mark.parametrize(
    ("model", "text", "error"),
    [("base", "x" * 1100, "bad_request"), ("poisoned", "x", "bad_model")],
)
def test_what_cannot_be_answered_is_refused(
    trainer: Trainer,
    request: pytest.FixtureRequest,
    model: str,
    text: str,
    error: FailureCode,
) -> None:
    asked = generation(
        ModelRef(base_model=request.getfixturevalue(model)),
        messages=(ChatMessage(role="user", content=text),),
    )

    assert trainer.fail(asked).error == error


# --- the tiny model ---------------------------------------------------------------------------


def test_the_tiny_model_is_safetensors_and_follows_from_its_seed(
    trainer: Trainer, base: str, tmp_path: Path
) -> None:
    for seed in (0, 1):
        request = MakeTinyModelRequest(
            id="seeded", output_dir=str(tmp_path / str(seed)), steps=0, seed=seed
        )
        assert trainer.make(request).final_loss is None

    assert set(files(Path(base))) == MODEL_FILES | TOKENIZER_FILES
    assert files(tmp_path / "0") == files(Path(base)) != files(tmp_path / "1")


def test_pre_training_says_how_far_it_is_and_learns(trainer: Trainer, tmp_path: Path) -> None:
    heard = trainer.ask(MakeTinyModelRequest(id="pre", output_dir=str(tmp_path / "model"), steps=5))

    progress = [message for message in heard if isinstance(message, MakeTinyModelProgress)]
    assert (progress[-1].step, progress[-1].total_steps) == (5, 5)
    assert progress[0].loss is not None
    assert progress[-1].loss is not None
    assert progress[-1].loss < progress[0].loss
