"""What may be set for the provider `openai`: of a training, and of how its service is asked.

No model and no address has a default: which service there is, and what it can train, is for
its user to say.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME: Final = "openai"
"""The provider's, in settings and in the store."""

Auto = Literal["auto"]
"""The service chooses, by the size of the dataset."""


@dataclass(frozen=True)
class OpenAIRules:
    """How the service is asked. A try that failed is repeated after a growing pause."""

    poll: timedelta = timedelta(seconds=30)
    """Between two looks at a job; each pause is up to a quarter shorter or longer."""
    timeout: timedelta = timedelta(seconds=60)
    """For each of connecting, sending and receiving."""
    tries: int = 5
    """Of one request, the first included."""
    retry_base: timedelta = timedelta(seconds=0.5)
    retry_cap: timedelta = timedelta(seconds=60)
    """The longest pause. A service that asks for a longer one is left alone for now."""
    delete_files: bool = True
    """Whether the uploaded rows are deleted there once their job has ended."""
    monitoring_url: str | None = None
    """Where a person looks at a job; `{job_id}` stands for its id. None is its address in the
    service's API."""


class OpenAITraining(BaseModel):
    """What `training` may say for this provider. Lax: environment variables are strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    epochs: Auto | Annotated[int, Field(ge=1, le=1_000)] = "auto"
    minibatch_size: Auto | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    learning_rate_multiplier: (
        Auto | Annotated[float, Field(gt=0, le=1_000, allow_inf_nan=False)]
    ) = "auto"
    objective: Literal["sft", "dpo"] = "sft"
    """`sft` is the protocol's method supervised."""
    preference_beta: Auto | Annotated[float, Field(gt=0, le=1_000, allow_inf_nan=False)] = "auto"
    """Of dpo; makes no difference to sft."""
    min_examples: int = Field(10, ge=1, le=1_000_000)
    """What the service asks for at least."""
    max_example_tokens: int = Field(65_536, ge=1, le=100_000_000)
    """What the model takes at most, counted as a quarter of an example's bytes."""
    max_file_mib: int = Field(512, ge=1, le=1_000_000)


def training_settings(training: Mapping[str, Any]) -> OpenAITraining:
    """The settings, checked. Raises ValueError naming the key."""
    try:
        return OpenAITraining.model_validate(dict(training))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0])
        if fault["type"] != "extra_forbidden":
            raise ValueError(f"training setting {key}: {fault['msg']}") from error
        known = OpenAITraining.model_fields
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(known)}"
        raise ValueError(f"no training setting {key} of the provider openai; {hint}") from error
