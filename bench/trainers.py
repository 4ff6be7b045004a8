"""The programs that bench.train runs, each in a process of its own.

`python -m bench.trainers NAME JSON` trains one adapter on one file of rows and prints one JSON
object: the real tokens of each step, when each step ended, its loss, and where the adapter is.
Both read the same token ids, which learnd's encoder made, and count real tokens themselves.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

IGNORED: Final = -100
"""A label that TRL does not learn from."""


@dataclass(frozen=True)
class Task:
    """What to train, and how. Lengths are in tokens."""

    base_model: str
    rows: str
    encoded: str
    """The rows' ids and labels, as JSON lines, in the order that learnd trains them in."""
    adapter: str
    """Both start from this one, so that they start from the same weights."""
    output: str
    settings: dict[str, Any]
    trl: dict[str, Any] = field(default_factory=dict)
    """Settings of TRL's SFTTrainer beside those that are learnd's too."""

    def line(self) -> str:
        """As the command line has it."""
        return json.dumps(asdict(self))


@dataclass
class Told:
    """What a program says of its training."""

    tokens: list[int] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    """Seconds since the first step began; one for each step."""
    losses: list[float] = field(default_factory=list)


def learnd(task: Task) -> Told:
    """The true trainer, without its process."""
    from finetune.trainer.bases import Bases
    from finetune.trainer.interruption import Interruption
    from finetune.trainer.protocol import (
        Message,
        ModelRef,
        TrainingSettings,
        TrainProgress,
        TrainRequest,
    )
    from finetune.trainer.reporting import Reporter
    from finetune.trainer.schedule import steps_from
    from finetune.trainer.train import train

    told = Told()

    def hear(message: Message) -> None:
        if isinstance(message, TrainProgress):
            told.ends.append(time.perf_counter())
            told.losses.append(message.loss or 0.0)

    reporter = Reporter("bench", hear)
    reporter.progress_is_due = lambda last: True  # type: ignore[method-assign]
    settings = TrainingSettings.model_validate(task.settings)
    request = TrainRequest(
        id="bench",
        model=ModelRef(base_model=task.base_model, adapter=task.adapter),
        train_file=task.rows,
        output_dir=task.output,
        checkpoint_dir=f"{task.output}-checkpoints",
        settings=settings,
    )
    result = train(request, reporter, Interruption(), Bases())
    if not result.packed:
        raise RuntimeError("the rows were not packed")
    lengths = [
        len(json.loads(line)["input_ids"]) for line in Path(task.encoded).read_text().splitlines()
    ]
    order = json.loads(Path(f"{task.encoded}.order").read_text())
    by_row = dict(zip(order, lengths, strict=False))
    steps = steps_from(0, [by_row[row] for row in range(len(by_row))], settings)
    for _ in range(result.steps):
        told.tokens.append(sum(by_row[row] for minibatch in next(steps) for row in minibatch))
    return told


def trl(task: Task) -> Told:
    """TRL's SFTTrainer."""
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    told = Told()
    tokens = 0

    class Counting(SFTTrainer):
        """Counts the tokens that are none of padding."""

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal tokens
            mask = inputs.get("attention_mask")
            tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            step: Any = super().training_step
            return step(model, inputs, *args, **kwargs)

    class Watching(TrainerCallback):
        """Notes each step."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            told.ends.append(time.perf_counter())
            told.tokens.append(tokens - sum(told.tokens))

        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                told.losses.append(float(logs["loss"]))

    settings = task.settings
    base = AutoModelForCausalLM.from_pretrained(task.base_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, task.adapter, is_trainable=True)
    config = SFTConfig(
        output_dir=f"{task.output}-checkpoints",
        per_device_train_batch_size=settings["minibatch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation"],
        num_train_epochs=1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=settings["precision"] == "bf16",
        use_cpu=not torch.cuda.is_available(),  # else it refuses bf16
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
        **{"max_length": settings["max_length"], **task.trl},
    )
    rows = [json.loads(line) for line in Path(task.encoded).read_text().splitlines()]
    trainer = Counting(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(task.base_model),
        callbacks=[Watching()],
    )
    trainer.train()
    trainer.save_model(task.output)
    return told


PROGRAMS: Final[dict[str, Callable[[Task], Told]]] = {"learnd": learnd, "trl": trl}


def main() -> None:
    """Run one program, and say what it measured."""
    name, line = sys.argv[1:]
    print(json.dumps(asdict(PROGRAMS[name](Task(**json.loads(line))))))


if __name__ == "__main__":
    main()
