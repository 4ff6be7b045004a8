"""What the daemon and the trainer process say to each other: one JSON object a line.

Requests go in on the trainer's stdin, messages come out on its stdout, each
with the request's id. Both sides import this module, so it knows nothing of
torch: only names, shapes and bounds. It neither reads nor writes a pipe.

A message sequence is ``ready`` once at the start, and then for each request
any number of ``progress``, ``note``, ``token`` and ``heartbeat`` (every
HEARTBEAT_SECONDS while the request runs) and exactly one ``done`` or
``failed``. A process that died said neither.

JSON has no NaN: where a number may be not finite, the field is null.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator

HEARTBEAT_SECONDS: Final = 2.0
PROGRESS_SECONDS: Final = 0.25
"""Progress messages of one request are at least this far apart (the last one is always sent)."""
CURVE_POINTS: Final = 200
"""A training's curve has no more points, however many steps it took."""
MEMORY_ADVICE: Final = (
    "take a smaller minibatch_size (and more gradient_accumulation) or max_length, set"
    " gradient_checkpointing: true, quantization: nf4 or optimizer: adamw_8bit, or train on a"
    " machine with more memory"
)

Method = Literal["lora", "full"]
ObjectiveName = Literal["sft", "dpo", "kto"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["cosine", "linear", "polynomial", "constant"]
Backend = Literal["auto", "gloo", "nccl"]
OptimizerName = Literal["adamw", "adamw_8bit"]
Quantization = Literal["none", "nf4", "fp4", "int8"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]

FailureCode = Literal[
    "bad_request",  # not JSON, not a known request, a field out of bounds
    "bad_model",  # missing, unreadable, not safetensors, not a LoRA adapter
    "bad_dataset",  # unreadable, or a row that is not one (named by line)
    "bad_output",  # the output directory is not empty, or cannot be written
    "disk_full",
    "out_of_memory",
    "unsupported",  # what this machine cannot do, or has no memory for: said before training
    "not_installed",  # torch and the like: the package's train extra
    "interrupted",  # SIGTERM or SIGUSR1: a training has written its checkpoint
    "process_died",  # another process of a distributed training
    "internal",  # a defect of ours; the message names exception and place
]


class _Said(BaseModel):
    """One thing that crosses the pipe: strict, closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DistributedSettings(BaseModel):
    """Several processes on one machine that train one model together, each on a part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="Off leaves the other keys without effect.")
    world_size: int = Field(2, ge=1, le=1024, description="Processes; one for each GPU.")
    backend: Backend = Field(
        "auto", description="Carries the gradients: auto is nccl with a GPU, else gloo."
    )


class TrainingSettings(BaseModel):
    """How to train. The daemon's configuration holds one of these too.

    Lax on its own, because environment variables are strings; a request that
    carries one is read strictly as a whole (``parse_request``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = Field(
        "lora", description="lora trains a small adapter; full trains every weight."
    )
    objective: ObjectiveName = Field(
        "sft",
        description="What is learned from: sft from answers, dpo from pairs of a better and a "
        "worse answer, kto from answers with a verdict.",
    )
    preference_beta: float = Field(
        0.1,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="Of dpo and kto: the higher, the closer to the model it starts from.",
    )
    approved_weight: float = Field(
        1.0, ge=0, le=1000, allow_inf_nan=False, description="Of kto: weight of a good answer."
    )
    rejected_weight: float = Field(
        1.0, ge=0, le=1000, allow_inf_nan=False, description="Of kto: weight of a bad answer."
    )
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the training rows.")
    max_steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Number of optimizer steps; when set it replaces epochs.",
    )
    minibatch_size: int = Field(
        4, ge=1, le=4096, description="Rows in one forward pass; memory grows with it."
    )
    gradient_accumulation: int = Field(
        8, ge=1, le=4096, description="Minibatches in one optimizer step."
    )
    learning_rate: float = Field(
        2e-4, gt=0, le=1, allow_inf_nan=False, description="Peak learning rate of AdamW."
    )
    warmup_steps: int = Field(
        100,
        ge=0,
        le=1_000_000,
        description="Steps of linear warm-up; never more than a tenth of all steps are used.",
    )
    schedule: Schedule = Field(
        "cosine", description="How the learning rate falls after the warm-up: to zero, or not."
    )
    polynomial_power: float = Field(
        2.0,
        gt=0,
        le=10,
        allow_inf_nan=False,
        description="The polynomial schedule's: 1 is linear, more falls sooner.",
    )
    averaged_share: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The result is the mean of the weights after each of the last steps, as a "
        "share of all; 0 takes those after the very last one.",
    )
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw_8bit keeps its moments in 8 bits: a quarter of their memory "
        "(needs bitsandbytes).",
    )
    max_length: int = Field(
        1024,
        ge=8,
        le=1_048_576,
        description="Tokens of one row. A longer prompt loses its beginning, a longer output its "
        "end.",
    )
    lora_rank: int = Field(16, ge=1, le=1024, description="Rank of a new adapter.")
    lora_alpha: int = Field(
        32, ge=1, le=65_536, description="A new adapter is scaled by alpha / rank."
    )
    lora_dropout: float = Field(
        0.05, ge=0, lt=1, allow_inf_nan=False, description="Dropout before the adapter's layers."
    )
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="Layers that get an adapter: all-linear, or module names."
    )
    quantization: Quantization = Field(
        "none",
        description="How the frozen base is kept while an adapter is trained (QLoRA): nf4 and fp4 "
        "in 4 bits, int8 in 8 (needs bitsandbytes).",
    )
    weight_decay: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="Decoupled weight decay of AdamW."
    )
    max_grad_norm: float = Field(
        1.0, gt=0, le=1e6, allow_inf_nan=False, description="Gradients are clipped to this norm."
    )
    precision: Precision = Field(
        "auto",
        description="Arithmetic, over trained weights in fp32. auto is bf16 on a GPU that has it, "
        "and on a CPU with bf16 instructions for a model large enough to gain; else fp16 on a "
        "GPU, fp32 on a CPU.",
    )
    attention: Attention = Field(
        "auto",
        description="auto is PyTorch's fused attention, row by row where rows are packed; the "
        "others are those of transformers.",
    )
    packing: bool = Field(
        True,
        description="Rows one after the other instead of padded, each for itself: the same loss "
        "in less time. A model that cannot is padded, and a note says so.",
    )
    group_by_length: bool = Field(
        False, description="Steps of rows of like length: even less padding, a less random order."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    cpu_offload: bool = Field(
        False,
        description="Activations wait for the backward pass in main memory: less GPU memory, more "
        "time.",
    )
    checkpoint_every_steps: int = Field(
        20, ge=1, le=1_000_000, description="Optimizer steps between two checkpoints."
    )
    distributed: DistributedSettings | None = Field(
        None, description="Train in several processes: {enabled, world_size, backend}."
    )
    checkpoints_kept: int = Field(
        2, ge=1, le=1000, description="The newest checkpoints, which stay until the run is over."
    )
    resume: bool = Field(
        True, description="Go on from a checkpoint of the same model, data and settings."
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Steps between two looks at the loss on the validation rows, for the curve "
        "alone; without it there is none.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the data order, the dropout and a new adapter."
    )

    @field_validator("quantization")
    @classmethod
    def _only_what_is_frozen(cls, value: Quantization, info: ValidationInfo) -> Quantization:
        if value != "none" and info.data.get("method") == "full":
            raise ValueError("quantised weights cannot be trained; method: lora, or none")
        return value


class ModelRef(_Said):
    """A causal language model: a base, and perhaps an adapter on top."""

    base_model: str = Field(min_length=1, description="Directory, or name on the hub.")
    adapter: str | None = Field(None, min_length=1, description="Directory of a LoRA adapter.")


class ChatMessage(_Said):
    """One turn of a conversation."""

    role: str = Field(min_length=1)
    content: str


# --- requests ---------------------------------------------------------------------------------


class _Request(_Said):
    id: str = Field(min_length=1, max_length=200)


class TrainRequest(_Request):
    """Continue training ``model`` on ``train_file`` and write the result to ``output_dir``.

    ``output_dir`` must be absent or empty and appears complete or not at all.
    A repeated request with the same ``checkpoint_dir`` resumes the newest
    checkpoint there, if it belongs to the same model, data and settings.
    """

    do: Literal["train"] = "train"
    model: ModelRef
    train_file: str = Field(min_length=1, description="JSONL rows.")
    output_dir: str = Field(min_length=1)
    checkpoint_dir: str = Field(min_length=1)
    validation_file: str | None = Field(
        None, min_length=1, description="JSONL rows for validate_every_steps. Never trained on."
    )
    tensorboard_dir: str | None = Field(
        None, min_length=1, description="Gets TensorBoard's event files of this training."
    )
    settings: TrainingSettings = TrainingSettings()


class EvaluateRequest(_Request):
    """Score each model on each example, teacher-forced, without generating."""

    do: Literal["evaluate"] = "evaluate"
    models: dict[str, ModelRef] = Field(
        min_length=1, description='By name, usually "champion" and "candidate".'
    )
    examples_file: str = Field(min_length=1, description="JSONL rows.")
    minibatch_size: int = Field(8, ge=1, le=4096)
    max_length: int = Field(1024, ge=8, le=1_048_576, description="As in the training.")
    precision: Precision = "auto"
    quantization: Quantization = Field("none", description="As in the training.")


class GenerateRequest(_Request):
    """Answer one conversation, piece by piece (``token`` messages)."""

    do: Literal["generate"] = "generate"
    model: ModelRef
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1)]
    max_new_tokens: int = Field(256, ge=1, le=1_048_576)
    temperature: float = Field(
        0.0, ge=0, le=10, allow_inf_nan=False, description="0 takes the most probable token."
    )
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Precision = "auto"


class MakeTinyModelRequest(_Request):
    """Make a small base model locally, for tests and the demo (no hub needed)."""

    do: Literal["make_tiny_model"] = "make_tiny_model"
    output_dir: str = Field(min_length=1)
    steps: int = Field(
        ge=0, le=1_000_000, description="Steps of pre-training; 0 leaves random weights."
    )
    seed: int = Field(0, ge=0, lt=2**63)


class PrepareRequest(_Request):
    """A training is near: import what it needs, and load its base if that can be kept."""

    do: Literal["prepare"] = "prepare"
    base_model: str = Field(min_length=1, description="As in ModelRef.")
    settings: TrainingSettings = TrainingSettings()


class PreflightRequest(_Request):
    """Say whether this machine can train so. Nothing is loaded but the libraries.

    What it cannot do fails as ``unsupported``, with the setting to change.
    """

    do: Literal["preflight"] = "preflight"
    base_model: str = Field(min_length=1, description="As in ModelRef.")
    settings: TrainingSettings = TrainingSettings()


class PingRequest(_Request):
    """Answer at once, so that the daemon knows that the process still works."""

    do: Literal["ping"] = "ping"


Request = (
    TrainRequest
    | EvaluateRequest
    | GenerateRequest
    | MakeTinyModelRequest
    | PrepareRequest
    | PreflightRequest
    | PingRequest
)


# --- results ----------------------------------------------------------------------------------


class SkippedRow(_Said):
    """A row that no label token was made from."""

    line: int = Field(ge=1, description="Line of the file, the first is 1.")
    reason: str


class TokenSpread(_Said):
    """How long the rows' prompts, or outputs, are in tokens, after what was cut."""

    total: int = Field(ge=0)
    least: int = Field(ge=0)
    mean: float = Field(ge=0)
    most: int = Field(ge=0)


class TrainingCurve(_Said):
    """How a training's numbers went, in at most CURVE_POINTS points of one or more steps each.

    Index i of each sequence is the point that ends with step ``steps[i]``. Losses are in
    nats per output token.
    """

    steps: tuple[int, ...] = ()
    loss: tuple[float | None, ...] = Field((), description="The mean of the point's steps.")
    learning_rate: tuple[float, ...] = Field((), description="Of the point's last step.")
    grad_norm: tuple[float | None, ...] = Field(
        (), description="The largest of the point's steps, before clipping."
    )
    tokens: tuple[int, ...] = Field((), description="Input tokens, prompts included: their sum.")
    rows: tuple[int, ...] = Field((), description="Rows trained on: their sum.")
    seconds: tuple[float, ...] = Field((), description="What the point's steps took together.")
    validation_steps: tuple[int, ...] = Field((), description="0 is before the first step.")
    validation_loss: tuple[float | None, ...] = Field((), description="On the validation rows.")


class TrainResult(_Said):
    """What a finished training did.

    A training that went wrong in its numbers is a result too, because the
    gate refuses it by name: ``all_finite`` false, ``trained_tokens`` 0 or
    ``weight_delta_norm`` 0.
    """

    do: Literal["train"] = "train"
    steps: int = Field(ge=0, description="Optimizer steps, those before a resume included.")
    epochs: float = Field(ge=0, description="Passes over the rows, the last one maybe partial.")
    trained_tokens: int = Field(ge=0, description="Output tokens learned from, repeats counted.")
    rows: int = Field(ge=0, description="Rows of the file, skipped ones included.")
    rows_truncated: int = Field(ge=0, description="Rows whose output lost its end.")
    prompts_truncated: int = Field(ge=0, description="Rows whose prompt lost its beginning.")
    tokens_cut: int = Field(ge=0, description="That those rows lost to max_length, in one pass.")
    longest_row: int = Field(ge=0, description="Tokens of the longest row before it was cut.")
    rows_skipped: int = Field(ge=0)
    skipped: tuple[SkippedRow, ...] = Field(description="The first of them, with the reason.")
    first_loss: float | None = Field(
        description="Nats per output token in the first step; of dpo and kto the mean over pairs "
        "or answers."
    )
    final_loss: float | None = Field(description="The same of the last step.")
    weight_delta_norm: float | None = Field(
        description="L2 norm of the change of the effective weights; null if not finite."
    )
    all_finite: bool = Field(description="No NaN or infinity in the loss or a trained weight.")
    seconds: float = Field(ge=0, description="Of this process, not of the part before a resume.")
    curve: TrainingCurve = TrainingCurve()
    notes: tuple[str, ...] = Field((), description="What the note messages said.")
    prompt_tokens: TokenSpread | None = Field(None, description="Of the rows trained on.")
    output_tokens: TokenSpread | None = Field(None, description="Of the rows trained on.")
    resumed_from_step: int | None
    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    packed: bool = Field(description="Whether rows were packed rather than padded.")


class ExampleScore(_Said):
    """How well one model knows one example."""

    loss: float | None = Field(
        description="Nats of the output per UTF-8 byte of it (plus one for its end), so that "
        "tokenizers compare; null when not finite, or when there was no token to score."
    )
    match: bool = Field(description="Each next token, the end too, is the most probable one.")
    tokens: int = Field(ge=0, description="Output tokens scored.")


class ModelScores(_Said):
    """One model's scores, in the order of the examples file."""

    examples: tuple[ExampleScore, ...]
    all_finite: bool


class EvaluateResult(_Said):
    """Scores by the names of the request's models."""

    do: Literal["evaluate"] = "evaluate"
    models: dict[str, ModelScores]
    rows_truncated: int = Field(ge=0)
    seconds: float = Field(ge=0)
    device: str
    precision: Literal["fp32", "bf16", "fp16"]


class GenerateResult(_Said):
    """The whole answer: ``text`` is what the token messages add up to."""

    do: Literal["generate"] = "generate"
    text: str
    tokens: int = Field(ge=0)
    finish: Literal["stop", "length"] = Field(description="The model's end, or the limit.")
    mean_logprob: float = Field(
        le=0, description="Nats per token, the end included, by the model at temperature 1."
    )
    seconds: float = Field(ge=0)


class MakeTinyModelResult(_Said):
    """A base model lies complete in the request's output_dir."""

    do: Literal["make_tiny_model"] = "make_tiny_model"
    parameters: int = Field(ge=1)
    steps: int = Field(ge=0)
    final_loss: float | None = Field(description="Nats per output byte; null without steps.")
    seconds: float = Field(ge=0)


class PrepareResult(_Said):
    """The next request finds libraries and base in memory."""

    do: Literal["prepare"] = "prepare"
    seconds: float = Field(ge=0)


class PreflightResult(_Said):
    """This machine can train so, as far as can be told before a model is loaded."""

    do: Literal["preflight"] = "preflight"
    device: str
    precision: Literal["fp32", "bf16", "fp16"]
    notes: tuple[str, ...] = Field((), description="Settings that do nothing here.")


class PingResult(_Said):
    """The process works."""

    do: Literal["ping"] = "ping"


Result = (
    TrainResult
    | EvaluateResult
    | GenerateResult
    | MakeTinyModelResult
    | PrepareResult
    | PreflightResult
    | PingResult
)


# --- messages ---------------------------------------------------------------------------------


class Ready(_Said):
    """Said once, before anything heavy is imported."""

    event: Literal["ready"] = "ready"
    pid: int = Field(ge=1)


class _Message(_Said):
    id: str


class Heartbeat(_Message):
    """The process lives and still works on the request."""

    event: Literal["heartbeat"] = "heartbeat"


class Note(_Message):
    """Something a person should know, such as a checkpoint that was not used."""

    event: Literal["note"] = "note"
    text: str


class TrainProgress(_Message):
    """After an optimizer step (step counts from 1)."""

    event: Literal["progress"] = "progress"
    do: Literal["train"] = "train"
    step: int
    total_steps: int
    loss: float | None
    learning_rate: float
    grad_norm: float | None = Field(description="Before clipping.")
    tokens_per_second: float = Field(description="Input tokens, prompts included.")
    seconds_left: float
    trained_tokens: int


class EvaluateProgress(_Message):
    """After a minibatch: ``done`` of ``total`` examples of one model."""

    event: Literal["progress"] = "progress"
    do: Literal["evaluate"] = "evaluate"
    model: str
    done: int
    total: int


class MakeTinyModelProgress(_Message):
    """After a step of pre-training."""

    event: Literal["progress"] = "progress"
    do: Literal["make_tiny_model"] = "make_tiny_model"
    step: int
    total_steps: int
    loss: float | None
    seconds_left: float


class Token(_Message):
    """The next piece of generated text: one token or a few, whole characters only."""

    event: Literal["token"] = "token"
    text: str


class Done(_Message):
    """The request succeeded."""

    event: Literal["done"] = "done"
    result: Result = Field(discriminator="do")


class Failed(_Said):
    """The request failed; the process lives on, except when SIGTERM came.

    ``id`` is null when the request was too broken to have one.
    """

    event: Literal["failed"] = "failed"
    id: str | None
    error: FailureCode
    message: str = Field(description="What happened and what to do about it.")


Progress = Annotated[
    TrainProgress | EvaluateProgress | MakeTinyModelProgress, Field(discriminator="do")
]
Message = Ready | Heartbeat | Note | Progress | Token | Done | Failed

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="do")])
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="event")])


def parse_request(line: str | bytes) -> Request:
    """Read one line of the trainer's stdin. Raises pydantic.ValidationError."""
    return _REQUEST.validate_json(line, strict=True)


def parse_message(line: str | bytes) -> Message:
    """Read one line of the trainer's stdout. Raises pydantic.ValidationError."""
    return _MESSAGE.validate_json(line, strict=True)


def finite_or_none(number: float) -> float | None:
    """A number as the messages carry it."""
    return number if math.isfinite(number) else None


def encode_line(said: Request | Message) -> bytes:
    """One request or message as a line, newline included."""
    return said.model_dump_json().encode() + b"\n"
