"""What a training may be told when it happens at a plain endpoint; learnd passes it on.

How the endpoint is asked is no part of it: see http_mapping.py.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune.trainer.protocol import ObjectiveName

NAME: Final = "http"
"""The provider's, in settings and in the store."""


class HttpTraining(BaseModel):
    """What `training` may say for this provider. Lax: environment variables are strings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: ObjectiveName = "sft"
    epochs: int | None = Field(None, ge=1, le=1_000)
    minibatch_size: int | None = Field(None, ge=1, le=1_000_000)
    """Sent as `batch_size`."""
    learning_rate: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Whatever else the service takes as a hyperparameter, as it is."""

    def hyperparameters(self) -> Mapping[str, Any] | None:
        """What was set, by the names that a service knows; None for nothing."""
        named = {
            "epochs": self.epochs,
            "batch_size": self.minibatch_size,
            "learning_rate": self.learning_rate,
        }
        known = {name: value for name, value in named.items() if value is not None}
        return {**known, **self.parameters} or None


def training_settings(training: Mapping[str, Any]) -> HttpTraining:
    """Raises ValueError, naming the key."""
    try:
        return HttpTraining.model_validate(dict(training))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0])
        if fault["type"] != "extra_forbidden":
            raise ValueError(f"training setting {key}: {fault['msg']}") from error
        known = tuple(HttpTraining.model_fields)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(known)}"
        raise ValueError(
            f"no training setting {key} of the provider http; {hint}; what only the service knows"
            " goes below `parameters`"
        ) from error
