"""What this machine cannot do, said before anything is loaded, with the setting to change.

Memory is judged by what cannot be less: the weights, and for what is trained its
gradients, the optimizer's moments and, where one is kept, the mean. Activations come on
top and are not foretold.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from finetune.trainer.errors import RequestFailed
from finetune.trainer.models import Compute, base_dtype, choose_compute
from finetune.trainer.parameters import count_parameters
from finetune.trainer.protocol import (
    PreflightRequest,
    PreflightResult,
    Quantization,
    TrainingSettings,
)
from finetune.trainer.reporting import Reporter

_QUANTISED_BYTES: Final[dict[Quantization, float]] = {"nf4": 0.52, "fp4": 0.52, "int8": 1.0}
"""Of a weight, its share of the blocks' scales included."""
_FP32_BYTES: Final = 4
_MOMENTS_BYTES: Final = {"adamw": 8.0, "adamw_8bit": 2.0}
_GIB: Final = 2**30


def preflight(request: PreflightRequest, reporter: Reporter) -> PreflightResult:
    """What a training would say first, without one. Raises RequestFailed (unsupported)."""
    compute = choose_compute(request.settings.precision, request.base_model)
    require_possible(request.base_model, request.settings, compute, reporter.note)
    return PreflightResult(
        device=compute.device.type, precision=compute.arithmetic, notes=tuple(reporter.notes)
    )


def require_possible(
    base_model: str, settings: TrainingSettings, compute: Compute, note: Callable[[str], None]
) -> None:
    """Raises RequestFailed (unsupported). ``note`` hears of settings that do nothing here."""
    if not _has_bitsandbytes():
        if settings.quantization != "none":
            raise _unsupported(
                f"quantization: {settings.quantization} needs bitsandbytes; install learnd with its"
                " quantized extra, or set quantization: none"
            )
        if settings.optimizer == "adamw_8bit":
            raise _unsupported(
                "optimizer: adamw_8bit needs bitsandbytes; install learnd with its quantized extra,"
                " or set optimizer: adamw"
            )
    if settings.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise _unsupported(
            "attention: flash_attention_2 needs an NVIDIA GPU and the package flash-attn; set"
            " attention: auto, which is PyTorch's own fused attention"
        )
    on_gpu = compute.device.type == "cuda"
    if on_gpu and settings.precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise _unsupported("this GPU has no bf16; set precision: fp16, or auto")
    if settings.cpu_offload and not on_gpu:
        note("cpu_offload does nothing on a CPU: there is no other memory to spare")
    _require_memory(base_model, settings, compute)


def _require_memory(base_model: str, settings: TrainingSettings, compute: Compute) -> None:
    parameters = count_parameters(base_model)
    if parameters is None:
        return
    needed = parameters * _bytes_per_weight(settings, compute)
    free = free_bytes(compute.device)
    if free is not None and needed > free:
        raise _unsupported(
            f"its {parameters / 1e9:.2f} billion weights need at least {needed / _GIB:.1f} GiB,"
            f" and {free / _GIB:.1f} GiB are free here; {_way_out(settings)}"
        )


def _bytes_per_weight(settings: TrainingSettings, compute: Compute) -> float:
    if settings.method == "full":
        mean = _FP32_BYTES if settings.averaged_share else 0
        return 2 * _FP32_BYTES + mean + _MOMENTS_BYTES[settings.optimizer]
    if settings.quantization != "none":
        return _QUANTISED_BYTES[settings.quantization]
    return base_dtype(settings, compute).itemsize


def _way_out(settings: TrainingSettings) -> str:
    if settings.method == "full":
        return "set method: lora"
    if settings.quantization == "none":
        return "set quantization: nf4"
    return "take a smaller base model, or a machine with more memory"


def free_bytes(device: torch.device) -> int | None:
    """Memory that a training can have, with what this process holds by now for the one before.

    None where the operating system is not Linux, which says so in files.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        own = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
    return int(min(_free_of_machine(), _free_of_container())) + own


def _free_of_machine() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_of_container() -> float:
    """As its control group allows; infinite where it does not limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else int(limit) - used


def _has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def _unsupported(message: str) -> RequestFailed:
    return RequestFailed("unsupported", message)
