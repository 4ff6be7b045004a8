"""Get ready for a training that is near: load the base that will be kept.

The libraries are imported with a process's first request, which may be this one. A full training
takes its base and changes it, and a quantised base is not kept, so for these there is nothing to
load. What is prepared changes no result; it only saves its time later.
"""

from __future__ import annotations

import time

from finetune.trainer.bases import Bases
from finetune.trainer.models import base_dtype, choose_compute
from finetune.trainer.protocol import PrepareRequest, PrepareResult
from finetune.trainer.reporting import Reporter


def prepare(request: PrepareRequest, reporter: Reporter, bases: Bases) -> PrepareResult:
    """Load what the request names. Raises RequestFailed."""
    started = time.monotonic()
    settings = request.settings
    compute = choose_compute(settings.precision, request.base_model)
    bases.tokenizer(request.base_model)
    if settings.method == "lora" and settings.quantization == "none":
        dtype = base_dtype(settings, compute)
        bases.lend(request.base_model, dtype, compute.device, reporter.note)
    return PrepareResult(seconds=time.monotonic() - started)
