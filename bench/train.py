"""How fast the trainer is, beside TRL's SFTTrainer: same model, rows, precision and steps.

    python -m bench.train [--quick] [--kept FILE [--minutes N]]

Two questions. From a full batch to a saved adapter: a new process of TRL against a request to
the warm trainer (a small model, few rows). Tokens in a second on rows of mixed lengths: TRL as
it comes, TRL at its best (each of several settings is tried), and learnd as it comes (a model
of the shape of GPT-2 small; a small one with --quick). Contenders take turns. Losses must agree:
one pair of runs starts from the same weights and sees the same rows in the same order. Prints
tables, and one JSON object as the last line. The whole takes some twenty minutes: with --kept each
figure is kept as it is measured, and the same command goes on where another one ended.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from operator import truediv
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.trainers import IGNORED, Task, Told
from daemon.printing import Column, number, show_table
from finetune.artifacts import ArtifactStore
from finetune.trainer.encoding import Encoder
from finetune.trainer.models import _has_bf16_instructions, new_adapter, save_adapter
from finetune.trainer.protocol import (
    Message,
    ModelRef,
    TrainingSettings,
    TrainProgress,
    TrainRequest,
)
from finetune.trainer.rows import read_rows
from finetune.trainer.schedule import count_steps, steps_from
from finetune.trainer.tiny_model import byte_tokenizer
from finetune.trainer_process import TrainerHost

SHARED: Final[Mapping[str, Any]] = {
    "epochs": 1,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_steps": 0,
    "lora_dropout": 0.0,
    "max_length": 512,
    "gradient_accumulation": 1,
    "checkpoint_every_steps": 1_000_000,
}
"""TRL warms up from a rate of zero and learnd does not, so neither does."""

SMALL: Final = {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 2048}
GPT2_SMALL: Final = {"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 50_257}
QUICK: Final = {"hidden_size": 512, "num_hidden_layers": 3, "vocab_size": 8192}

BATCH: Final = 20
"""Rows of a full batch, three times over, in the small model."""

TRL_BEST: Final[Mapping[str, Mapping[str, Any]]] = {
    "trl packed": {"packing": True},
    "trl unpadded": {"padding_free": True, "max_length": None},
    "trl by length": {"train_sampling_strategy": "group_by_length"},
}
"""Beside gradient_checkpointing=False, which all of these have."""

CONTENDERS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "learnd": ("learnd", {}),
    "trl default": ("trl", {}),
    **{name: ("trl", {"gradient_checkpointing": False, **best}) for name, best in TRL_BEST.items()},
}
"""Of the rows of mixed lengths: the program, and TRL's settings."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shape: Mapping[str, int]
    rows: int
    minibatch_size: int
    rounds: int


FULL: Final = Plan(GPT2_SMALL, 64, 8, 3)
SHORT: Final = Plan(QUICK, 32, 8, 1)


class OutOfTimeError(Exception):
    """Nothing more is begun in this process."""


class Figures:
    """What was measured, by name, in the order of the rounds; kept in a file if there is one."""

    def __init__(self, file: Path | None, seconds: float) -> None:
        """After so many seconds nothing more is begun."""
        self._file, self._end = file, time.monotonic() + seconds
        self._found: defaultdict[str, list[float]] = defaultdict(list)
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                self._take(json.loads(line))

    def __getitem__(self, name: str) -> list[float]:
        return self._found[name]

    def wanting(self, name: str, rounds: int) -> bool:
        """Whether a round of it is to be measured yet. Raises OutOfTimeError when one is."""
        if len(self._found[name]) >= rounds:
            return False
        if time.monotonic() > self._end:
            raise OutOfTimeError
        return True

    def add(self, measured: Mapping[str, float]) -> None:
        """One round of each; all of them are kept, or none."""
        self._take(measured)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(dict(measured)) + "\n")

    def _take(self, measured: Mapping[str, float]) -> None:
        for name, figure in measured.items():
            self._found[name].append(figure)


class Bench:
    """One run: its folder, models and rows."""

    def __init__(self, folder: Path, plan: Plan, figures: Figures) -> None:
        self._folder, self._plan, self.figures = folder, plan, figures
        self._count = 0
        self.precision = "bf16" if _has_bf16_instructions() else "fp32"

    def mixed_lengths(self) -> None:
        """Tokens in a second, on rows of 16 to 500 tokens."""
        plan = self._plan
        base = self._make_model("mixed", plan.shape)
        rows = self._write_rows("mixed", plan.rows, mixed=True)
        settings = {**SHARED, "minibatch_size": plan.minibatch_size, "precision": self.precision}
        names = list(CONTENDERS)
        for turn in range(plan.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if not self.figures.wanting(name, turn + 1):
                    continue
                program, trl = CONTENDERS[name]
                task = self._task(base, rows, settings, trl)
                told = _run(program, task)
                _check(name, told, task)
                seconds, tokens = told.ends[-1] - told.ends[0], sum(told.tokens[1:])
                self.figures.add({name: tokens / seconds})
                print(f"  {name:<14}{tokens / seconds:>10,.0f} tokens/s", flush=True)

    def same_losses(self) -> None:
        """The relative difference of the losses of the last steps, from the same start."""
        if not self.figures.wanting("loss_gap", 1):
            return
        base = self._make_model("losses", SMALL)
        rows = self._write_rows("losses", 48, mixed=True)
        settings = {**SHARED, "minibatch_size": 4, "precision": "fp32"}
        task = self._task(base, rows, settings, {"train_sampling_strategy": "sequential"})
        ours, theirs = _run("learnd", task), _run("trl", self._again(task))
        if ours.tokens != theirs.tokens or len(ours.losses) != len(theirs.losses):
            raise RuntimeError(f"not the same steps: {ours.tokens} and {theirs.tokens}")
        late = len(ours.losses) // 2
        mean, other = (statistics.fmean(told.losses[late:]) for told in (ours, theirs))
        self.figures.add({"loss_gap": abs(mean - other) / other})
        print(f"  losses from {ours.losses[0]:.4f} to {mean:.5f} and {other:.5f}", flush=True)

    async def cold_and_warm(self) -> None:
        """From a full batch to a saved adapter."""
        if not self.figures.wanting("warm", self._plan.rounds):
            return
        base = self._make_model("batch", SMALL)
        rows = self._write_rows("batch", BATCH, mixed=False)
        settings = {**SHARED, "minibatch_size": 4, "precision": "fp32", "epochs": 3}
        artifacts = ArtifactStore(self._folder / "artifacts")
        log = self._folder / "trainer.log"
        async with TrainerHost(artifacts, log) as host, host.use() as trainer:
            for turn in range(self._plan.rounds - len(self.figures["warm"]) + 1):
                task = self._task(base, rows, settings, {})
                last: list[TrainProgress] = []

                def hear(message: Message, last: list[TrainProgress] = last) -> None:
                    if isinstance(message, TrainProgress):
                        last[:] = [message]

                request = TrainRequest(
                    id=f"bench {turn}",
                    model=ModelRef(base_model=task.base_model, adapter=task.adapter),
                    train_file=task.rows,
                    output_dir=task.output,
                    checkpoint_dir=f"{task.output}-checkpoints",
                    settings=TrainingSettings.model_validate(task.settings),
                )
                began = time.perf_counter()
                result = await trainer.request(request, hear)
                seconds = time.perf_counter() - began
                _require_adapter(task)
                tokens = sum(len(json.loads(line)["input_ids"]) for line in _lines(task.encoded))
                if turn == 0:
                    continue  # the request that made it warm
                again = self._again(task)
                began = time.perf_counter()
                told = await asyncio.to_thread(_run, "trl", again)
                cold = time.perf_counter() - began
                if len(told.losses) != result.steps:
                    raise RuntimeError(f"{len(told.losses)} steps of TRL, {result.steps} of learnd")
                loop = tokens / last[0].tokens_per_second
                self.figures.add({"warm": seconds, "loop": loop, "cold": cold})
                print(f"  warm {seconds:.2f} s, of it steps {loop:.2f} s, TRL cold {cold:.2f} s")

    def _make_model(self, name: str, shape: Mapping[str, Any]) -> Path:
        """Random weights over bytes, and a LoRA adapter for both to start from."""
        torch.manual_seed(0)
        config = LlamaConfig(
            **shape,
            intermediate_size=4 * shape["hidden_size"],
            num_attention_heads=shape["hidden_size"] // 64,
            max_position_embeddings=1024,
            pad_token_id=256,
            bos_token_id=257,
            eos_token_id=258,
        )
        model, base = LlamaForCausalLM(config), self._folder / name
        model.save_pretrained(str(base))
        byte_tokenizer().save_pretrained(str(base))
        adapter = self._folder / f"{name}-adapter"
        adapter.mkdir()
        save_adapter(new_adapter(model, TrainingSettings(lora_dropout=0.0)), adapter)
        return base

    def _write_rows(self, name: str, n: int, *, mixed: bool) -> Path:
        """Half of each row's bytes are prompt, half output."""
        random = Random(1)
        path = self._folder / f"{name}.jsonl"
        with path.open("w") as file:
            for _ in range(n):
                size = min(240, int(random.lognormvariate(3.6, 0.9)) + 8) if mixed else 40
                text = "".join(random.choices("etaoin shrdlu", k=size))
                file.write(json.dumps({"prompt": text, "completion": text[::-1] + "."}) + "\n")
        return path

    def _task(
        self, base: Path, rows: Path, settings: Mapping[str, Any], trl: Mapping[str, Any]
    ) -> Task:
        self._count += 1
        encoded = self._folder / f"{rows.stem}-{self._count}.encoded"
        _encode(rows, encoded, settings)
        return Task(
            base_model=str(base),
            rows=str(rows),
            encoded=str(encoded),
            adapter=f"{base}-adapter",
            output=str(self._folder / f"output-{self._count}"),
            settings=dict(settings),
            trl=dict(trl),
        )

    def _again(self, task: Task) -> Task:
        self._count += 1
        return Task(**{**vars(task), "output": str(self._folder / f"output-{self._count}")})


def _encode(rows: Path, encoded: Path, settings: Mapping[str, Any]) -> None:
    """Ids and labels, in the order in which learnd's schedule has the rows."""
    encoder = Encoder(byte_tokenizer())
    known = [encoder.encode(row, settings["max_length"]) for row in read_rows(str(rows))]
    chosen = TrainingSettings.model_validate(dict(settings))
    lengths = [len(row.ids) for row in known]
    steps = islice(steps_from(0, lengths, chosen), count_steps(len(known), chosen))
    order = [row for step in steps for minibatch in step for row in minibatch]
    with encoded.open("w") as file:
        for index in order:
            row = known[index]
            labels = [IGNORED] * row.first_label + list(row.ids[row.first_label :])
            file.write(json.dumps({"input_ids": row.ids, "labels": labels}) + "\n")
    Path(f"{encoded}.order").write_text(json.dumps(order))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _run(program: str, task: Task) -> Told:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.trainers", program, task.line()],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{done.stderr[-3000:]}")
    _require_adapter(task)
    return Told(**json.loads(done.stdout.splitlines()[-1]))


def _require_adapter(task: Task) -> None:
    if not Path(task.output, "adapter_model.safetensors").is_file():
        raise RuntimeError(f"no adapter in {task.output}")


def _check(name: str, told: Told, task: Task) -> None:
    expected = sum(len(json.loads(line)["input_ids"]) for line in _lines(task.encoded))
    if sum(told.tokens) != expected:
        raise RuntimeError(f"{name} has read {sum(told.tokens)} tokens of {expected}")
    if len(told.ends) < 2:
        raise RuntimeError(f"{name} took a single step, of which none is timed")


def report(bench: Bench) -> None:
    """Tables for people, and the JSON object."""
    figures = bench.figures
    rates = {name: statistics.median(figures[name]) for name in CONTENDERS}
    show_table(
        [Column("mixed lengths"), number("tokens/s"), number("of TRL default")],
        [
            (name, f"{rate:,.0f}", f"{rate / rates['trl default']:.2f}")
            for name, rate in rates.items()
        ],
    )
    cold, warm, loop = (statistics.median(figures[name]) for name in ("cold", "warm", "loop"))
    over_loop = statistics.median(map(truediv, figures["warm"], figures["loop"]))
    show_table(
        [Column("full batch to adapter"), number("seconds")],
        [
            ("TRL, a new process", f"{cold:.2f}"),
            ("learnd, warm", f"{warm:.2f}"),
            ("of it the training loop", f"{loop:.2f}"),
        ],
    )
    best = max(rate for name, rate in rates.items() if name.startswith("trl"))
    print(
        json.dumps(
            {
                "bench": "train",
                "precision": bench.precision,
                "trl_cold_over_warm": round(cold / warm, 2),
                "warm_over_train_loop": round(over_loop, 3),
                "tokens_over_trl_default": round(rates["learnd"] / rates["trl default"], 2),
                "tokens_over_trl_best": round(rates["learnd"] / best, 2),
                "loss_gap": round(figures["loss_gap"][0], 5),
                "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
            }
        )
    )


def measure(folder: Path, plan: Plan, figures: Figures) -> Bench:
    """All of it. Raises RuntimeError when a contender did not do what the others did."""
    bench = Bench(folder, plan, figures)
    bench.same_losses()
    asyncio.run(bench.cold_and_warm())
    bench.mixed_lengths()
    return bench


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="A small model, and one round.")
    parser.add_argument("--kept", type=Path, help="A file of this command's figures so far.")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="Then no further figure is begun."
    )
    chosen = parser.parse_args()
    figures = Figures(chosen.kept, chosen.minutes * 60)
    with tempfile.TemporaryDirectory(prefix="learnd-bench-") as folder:
        try:
            report(measure(Path(folder), SHORT if chosen.quick else FULL, figures))
        except OutOfTimeError:
            sys.exit("the time is over: the same command goes on from here")


if __name__ == "__main__":
    main()
