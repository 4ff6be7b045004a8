"""Get ready for a training that is near: imports first, then the base that will be kept.

A full training takes its base and changes it, so for one there is nothing to keep but the
libraries. What is prepared changes no result; it only saves its time later.
"""

from __future__ import annotations

import time

# Imported for what importing costs: the training then finds them in memory.
import finetune.trainer.evaluate
import finetune.trainer.train  # noqa: F401
from finetune.trainer.bases import Bases
from finetune.trainer.models import base_dtype, choose_compute
from finetune.trainer.protocol import PrepareRequest, PrepareResult
from finetune.trainer.reporting import Reporter


def prepare(request: PrepareRequest, reporter: Reporter, bases: Bases) -> PrepareResult:
    """Load what the request names. Raises RequestFailed."""
    started = time.monotonic()
    compute = choose_compute(request.settings.precision)
    bases.tokenizer(request.base_model)
    if request.settings.method == "lora":
        dtype = base_dtype(request.settings, compute)
        bases.lend(request.base_model, dtype, compute.device, reporter.note)
    return PrepareResult(seconds=time.monotonic() - started)
