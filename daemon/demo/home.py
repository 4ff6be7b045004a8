"""The demo's folder: the daemon's data, the base model that outlives it, and the settings.

Only what a demo made is ever removed. The settings are one mapping, of which the demo's
daemon and the file for the commands afterwards are both made.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from daemon.demo.base_model import base_model_dir
from daemon.installation import DATA_LOCK, only_daemon_in
from learning.errors import LearningError

BATCH_SIZE: Final = 250
HELD_OUT: Final = 64
"""Labelled examples of each line; the gate wants 32."""

LINES: Final = ("normalize", "coding")
TRAINING: Final[Mapping[str, Any]] = {
    "method": "lora",
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "averaged_share": 0.0,
    "max_steps": 50,
    "minibatch_size": 32,
    "gradient_accumulation": 1,
    "max_length": 256,
    "checkpoint_every_steps": 1_000,
}
"""Measured for the tiny base model; see docs/log.md. A real model wants other numbers."""


class NotADemoError(LearningError):
    """A folder stands where the demo's data would, and no demo made it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} was not made by a demo; give the demo another --data-dir")
        self.folder = folder


@dataclass(frozen=True)
class Home:
    """Where everything of the demo lies."""

    root: Path

    @property
    def data_dir(self) -> Path:
        """The daemon's data directory, new for each demo."""
        return self.root / "data"

    @property
    def artifacts_dir(self) -> Path:
        """Where its versions lie."""
        return self.data_dir / "artifacts"

    @property
    def base_model(self) -> Path:
        """Made once; the next demo takes it as it is."""
        return base_model_dir(self.root)

    @property
    def log_file(self) -> Path:
        """What the daemon logs."""
        return self.root / "learnd.log"

    @property
    def config_file(self) -> Path:
        """Settings for the commands to try next."""
        return self.root / "learnd.yaml"

    def held_out_file(self, line: str) -> Path:
        """The labelled examples of a line, as they are imported."""
        return self.root / f"held-out-{line}.jsonl"

    def clear(self) -> None:
        """Remove the last demo's data. Raises NotADemoError and DataDirInUseError."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self.data_dir.exists():
            if not (self.data_dir / DATA_LOCK).is_file():
                raise NotADemoError(self.data_dir)
            with only_daemon_in(self.data_dir):
                shutil.rmtree(self.data_dir)

    def settings(self, *, kafka: str | None, http_port: int | None) -> dict[str, Any]:
        """Everything that the demo sets; the rest are the defaults of learnd."""
        settings: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            # The story counts on this size.
            "queue": {
                "batch_size": BATCH_SIZE,
                "max_queue_size": 10 * BATCH_SIZE,
                "adaptive": False,
            },
            # The imported examples are enough to judge by, so every event may train. The
            # poisoned batch has as many wrong rows as repeated ones.
            # The firewall would stop the poisoned batch, and the gate is to refuse it.
            "firewall": {"enabled": False},
            "split": {"held_out_share": 0.0, "replay_share": 0.5},
            "finetune": {
                "base_model": str(self.base_model),
                "training": dict(TRAINING),
                "trainer_idle_seconds": 120.0,
            },
            "lines": {name: {"task_types": [name]} for name in LINES},
        }
        if kafka is not None:
            settings["kafka"] = {"bootstrap_servers": kafka}
        if http_port is not None:
            settings["http"] = {"port": http_port}
        return settings

    def write_config(self, *, kafka: str | None, http_port: int | None) -> None:
        """Write the settings where `learnd --config` reads them."""
        text = yaml.safe_dump(self.settings(kafka=kafka, http_port=http_port), sort_keys=False)
        self.config_file.write_text(f"# Written by `learnd demo`.\n{text}", encoding="utf-8")
