"""What crosses the trainer's pipes: shapes, bounds, and that the daemon's side stays light."""

import json
import math
import subprocess
import sys

import pytest
from pydantic import ValidationError

from finetune.trainer.protocol import (
    Done,
    EvaluateProgress,
    EvaluateRequest,
    ExampleScore,
    Failed,
    GenerateRequest,
    GenerateResult,
    Heartbeat,
    MakeTinyModelProgress,
    MakeTinyModelRequest,
    Message,
    ModelRef,
    Note,
    PingRequest,
    PrepareRequest,
    Ready,
    Request,
    Token,
    TrainingSettings,
    TrainProgress,
    TrainRequest,
    encode_line,
    finite_or_none,
    parse_message,
    parse_request,
)

MODEL = ModelRef(base_model="base", adapter="adapter")
TRAIN = TrainRequest(
    id="1", model=MODEL, train_file="train.jsonl", output_dir="out", checkpoint_dir="checkpoints"
)


@pytest.mark.parametrize(
    "request_",
    [
        TRAIN,
        TRAIN.model_copy(update={"settings": TrainingSettings(target_modules=("q", "v"))}),
        EvaluateRequest(id="2", models={"champion": MODEL}, examples_file="examples.jsonl"),
        GenerateRequest(id="3", model=MODEL, messages=({"role": "user", "content": "é\n"},)),  # type: ignore[arg-type]
        MakeTinyModelRequest(id="4", output_dir="tiny", steps=0),
        PrepareRequest(id="5", base_model="base"),
        PingRequest(id="6"),
    ],
    ids=lambda request: request.do,
)
def test_a_request_is_read_as_it_was_written(request_: Request) -> None:
    line = encode_line(request_)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_request(line) == request_


@pytest.mark.parametrize(
    "message",
    [
        Ready(pid=7),
        Heartbeat(id="1"),
        Note(id="1", text="two\nlines"),
        TrainProgress(
            id="1",
            step=1,
            total_steps=2,
            loss=None,
            learning_rate=0.1,
            grad_norm=None,
            tokens_per_second=3.5,
            seconds_left=1.0,
            trained_tokens=9,
        ),
        EvaluateProgress(id="1", model="champion", done=1, total=2),
        MakeTinyModelProgress(id="1", step=1, total_steps=2, loss=1.0, seconds_left=1.0),
        Token(id="1", text="é"),
        Done(
            id="1",
            result=GenerateResult(
                text="a", tokens=1, finish="stop", mean_logprob=-0.5, seconds=0.1
            ),
        ),
        Failed(id=None, error="bad_request", message="not JSON"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    assert parse_message(encode_line(message)) == message


@pytest.mark.parametrize(
    "change",
    [
        {"do": "dream"},
        {"id": ""},
        {"id": 1},
        {"surprise": 1},
        {"model": {"base_model": "base", "trust": True}},
        {"settings": {"epochs": "3"}},
        {"settings": {"epochs": True}},
        {"settings": {"epochs": 0}},
        {"settings": {"learning_rate": 0}},
        {"settings": {"lora_dropout": 1}},
        {"settings": {"target_modules": []}},
        {"settings": {"trust_remote_code": True}},
        {"settings": {"seed": -1}},
    ],
    ids=str,
)
def test_a_request_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    request = json.loads(encode_line(TRAIN)) | change

    with pytest.raises(ValidationError):
        parse_request(json.dumps(request))


def test_the_settings_take_the_strings_of_an_environment() -> None:
    settings = TrainingSettings.model_validate({"epochs": "2", "learning_rate": "1e-3"})

    assert (settings.epochs, settings.learning_rate) == (2, 1e-3)


@pytest.mark.parametrize("name", TrainingSettings.model_fields)
def test_each_setting_has_a_default_and_says_what_it_is(name: str) -> None:
    field = TrainingSettings.model_fields[name]

    assert not field.is_required()
    assert field.description


def test_a_number_that_is_not_finite_crosses_as_null() -> None:
    assert finite_or_none(math.nan) is None
    assert finite_or_none(math.inf) is None
    assert finite_or_none(0.5) == 0.5
    line = encode_line(
        Token(id="1", text=ExampleScore(loss=None, match=False, tokens=0).model_dump_json())
    )
    assert b"null" in line


def test_neither_the_protocol_nor_the_start_of_the_process_loads_torch() -> None:
    code = (
        "import sys, finetune.trainer.protocol, finetune.trainer.__main__;"
        "heavy = {'torch', 'transformers', 'peft', 'tokenizers', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
