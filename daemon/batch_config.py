"""What `learnd finetune` is told: by its configuration file, and over it by the command line.

Reads and checks; what is done with it is in daemon/finetuning.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from daemon.settings import (
    LOCAL_PROVIDERS,
    AbsolutePath,
    Money,
    PartialShare,
    Text,
    in_words,
    no_such_setting,
)
from daemon.settings_sources import SettingsError, read_mapping
from finetune.batch_job import Plan
from finetune.datasets.batch import Sources
from finetune.trainer.protocol import ObjectiveName, TrainingSettings
from learning.ports import ModelReference

DEFAULT_OUTPUT = Path("learnd-finetune")


class BatchConfig(BaseModel):
    """The keys of the file. Paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: Text = "local"
    model: Text | None = None
    """A directory or a hub name."""
    adapter: AbsolutePath | None = None
    """A LoRA artifact of the model to go on from, or to evaluate."""
    dataset: AbsolutePath | None = None
    validation: AbsolutePath | None = None
    validation_share: PartialShare = 0.2
    """Of the dataset; without a validation file."""
    skip_bad_rows: bool = False
    system_prompt: Text | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    output: Annotated[AbsolutePath, Field(validate_default=True)] = DEFAULT_OUTPUT
    """Each job gets a folder of its own in here."""
    tensorboard_dir: AbsolutePath | None = None
    max_cost: Money | None = None
    """In the currency of the settings; by default their money.cap_per_run."""
    training: dict[str, Any] = Field(default_factory=dict)
    """The provider's settings; for a local one those of docs/settings.md."""

    @model_validator(mode="after")
    def _seed_is_outside(self) -> Self:
        if "seed" in self.training:
            raise PydanticCustomError("seed", "training.seed: write `seed` beside `training`")
        return self

    def plan(self, *, evaluate_only: bool) -> Plan:
        """The plan of a job. Its settings are complete, so that equal ones make the same job.

        To be evaluated on, every row is taken. Raises SettingsError when the training settings
        are not understood by a local provider.
        """
        assert self.dataset is not None, "the command asked for it"
        training: Mapping[str, Any] = self.training
        if self.provider in LOCAL_PROVIDERS:
            training = _complete(training)
        elif training.get("objective", "sft") not in get_args(ObjectiveName):
            raise SettingsError(["training.objective: sft, dpo or kto is known here"])
        return Plan(
            provider=self.provider,
            model=ModelReference(self.model or "", self.adapter),
            sources=Sources(
                dataset=self.dataset,
                validation=self.validation,
                validation_share=0.0 if evaluate_only else self.validation_share,
                seed=self.seed,
                skip_bad_rows=self.skip_bad_rows,
                system_prompt=self.system_prompt,
                objective="sft" if evaluate_only else training.get("objective", "sft"),
            ),
            training=training,
            seed=self.seed,
        )


def read_config(file: Path | None, given: Mapping[str, Any]) -> BatchConfig:
    """The file's keys, with those of the command line over them. Raises SettingsError.

    `given` may hold `training`, whose keys are laid over the file's one by one.
    """
    told: dict[str, Any] = dict(read_mapping(file)) if file is not None else {}
    training = told.get("training") or {}
    if not isinstance(training, dict):
        raise SettingsError([f"file {file}: training must hold settings of its own"])
    merged = {**told, **given, "training": {**training, **given.get("training", {})}}
    try:
        return BatchConfig.model_validate(merged)
    except ValidationError as error:
        where = "command line" if file is None else f"file {file} or command line"
        raise SettingsError(
            [
                f"{where}: {_problem(found['loc'], found['type'], found['msg'], merged)}"
                for found in error.errors(include_url=False)
            ]
        ) from error


def _problem(place: tuple[int | str, ...], kind: str, message: str, told: Mapping[str, Any]) -> str:
    if not place:
        return message
    name = str(place[0])
    if kind == "extra_forbidden":
        if name in TrainingSettings.model_fields:
            return f"{name}: it belongs below training"
        return f"{name}: {no_such_setting(name, tuple(BatchConfig.model_fields))}"
    return f"{name}: {in_words(message, told.get(name))}"


def _complete(training: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return TrainingSettings.model_validate(dict(training)).model_dump(
            mode="json", exclude={"seed"}
        )
    except ValidationError as error:
        raise SettingsError(
            [
                f"training.{found['loc'][0]}: "
                + (
                    no_such_setting(str(found["loc"][0]), tuple(TrainingSettings.model_fields))
                    if found["type"] == "extra_forbidden"
                    else in_words(found["msg"], training.get(str(found["loc"][0])))
                )
                for found in error.errors(include_url=False)
            ]
        ) from error
