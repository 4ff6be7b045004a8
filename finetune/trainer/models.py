"""Load models and adapters from safetensors, and write them back.

Never runs code that came with a model, never reads a pickle, and never goes
on with weights that were missing from the files: transformers would fill
them in at random, with no more than a warning.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune.trainer.errors import RequestFailed, ran_out_of_memory
from finetune.trainer.parameters import count_parameters
from finetune.trainer.protocol import (
    ModelRef,
    Precision,
    Quantization,
    TrainingSettings,
)

Arithmetic = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[Arithmetic, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_BF16_PARAMETERS = 30_000_000
"""From about here on a CPU gains from bf16; conversions cost a smaller model more than it saves."""
_PACKS_FOR_GOOD = "support_avx512bf16_for_cpu"
"""Of a 4-bit layer of bitsandbytes; see `_keep_differentiable`."""
_SAMPLED_BYTES = 1 << 20
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Compute:
    """Where to calculate, and in which arithmetic."""

    device: torch.device
    arithmetic: Arithmetic

    @property
    def dtype(self) -> torch.dtype:
        """Of weights that are not trained."""
        return _DTYPES[self.arithmetic]

    def autocast(self) -> AbstractContextManager[Any]:
        """Lower precision for the operations that bear it, over fp32 weights."""
        if self.arithmetic == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose_compute(precision: Precision, base_model: str) -> Compute:
    """The GPU when there is one, and the arithmetic that ``precision`` means there.

    auto is bf16 where it is faster: on a GPU that has it (else fp16), and on a CPU with
    instructions for it when the model is large enough. It depends on nothing that could
    differ when a training is resumed.
    """
    if torch.cuda.is_available():
        best: Arithmetic = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return Compute(torch.device("cuda"), best if precision == "auto" else precision)
    gains = _has_bf16_instructions() and (count_parameters(base_model) or 0) >= _BF16_PARAMETERS
    best = "bf16" if gains else "fp32"
    return Compute(torch.device("cpu"), best if precision == "auto" else precision)


def _has_bf16_instructions() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def base_dtype(settings: TrainingSettings, compute: Compute) -> torch.dtype:
    """Of the base under a training. Small updates vanish in 16 bits: what is trained is fp32."""
    return torch.float32 if settings.method == "full" else compute.dtype


def load_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """Raises RequestFailed (bad_model)."""
    with _bad_model(base_model):
        _require_directory(base_model)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base_model, trust_remote_code=False
        )
    return tokenizer


def load_base(
    base_model: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantization: Quantization = "none",
) -> PreTrainedModel:
    """The base in evaluation mode. Raises RequestFailed (bad_model)."""
    with _bad_model(base_model):
        _require_directory(base_model)
        # One tuple of model and report, which its annotation does not say.
        loading: Any = AutoModelForCausalLM.from_pretrained(
            base_model,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_quantized(quantization, dtype, device),
        )
        model, report = loading
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are not in its files, such as {missing[0]}")
    if quantization == "none":
        model = model.to(device)  # quantised weights are there, and may not be moved
    else:
        _keep_differentiable(model)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Where a CPU has bf16, a look in evaluation mode turns bitsandbytes' 4-bit layers into ones
    that give no gradient, for good."""
    for module in model.modules():
        if hasattr(module, _PACKS_FOR_GOOD):
            setattr(module, _PACKS_FOR_GOOD, False)


def _quantized(
    quantization: Quantization, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Arguments that make transformers quantise the weights as it reads them."""
    if quantization == "none":
        return {}
    # It warns of its way to multiply in 8 bits at each multiplication.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    configure: Any = BitsAndBytesConfig  # which is not typed
    if quantization == "int8":
        config = configure(load_in_8bit=True)
    else:
        config = configure(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_compute_dtype=dtype,
            # The scales of the blocks in 8 bits too: 0.4 bits less for each weight.
            bnb_4bit_use_double_quant=True,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def stored_dtype(base_model: str) -> torch.dtype:
    """The type that the weights lie in on the disk."""
    with _bad_model(base_model):
        dtype = AutoConfig.from_pretrained(base_model, trust_remote_code=False).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def new_adapter(model: PreTrainedModel, settings: TrainingSettings) -> PeftModel:
    """A fresh trainable adapter, which changes nothing yet. Raises RequestFailed (bad_model)."""
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type=TaskType.CAUSAL_LM,
    )
    with _bad_model("lora settings"), _without_peft_noise():
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def load_adapter(
    model: PreTrainedModel, adapter: str, trainable: bool, dropout: float = 0.0
) -> PeftModel:
    """The model with an adapter from a directory. Raises RequestFailed (bad_model)."""
    directory = Path(adapter)
    with _bad_model(adapter), _without_peft_noise():
        _require_adapter(directory)
        config = PeftConfig.from_pretrained(adapter)
        if not isinstance(config, LoraConfig):
            raise ValueError(f"a {config.peft_type} adapter; only LoRA is known here")
        config.inference_mode = not trainable
        config.lora_dropout = dropout
        adapted = PeftModel.from_pretrained(
            model, adapter, config=config, is_trainable=trainable, use_safetensors=True
        )
        expected = set(get_peft_model_state_dict(adapted))
        with safe_open(directory / _ADAPTER_WEIGHTS, framework="pt") as stored:
            difference = expected.symmetric_difference(stored.keys())
        if difference:
            raise ValueError(
                f"its weights do not belong to this base model: {len(difference)} are missing "
                f"or too many, such as {min(difference)}"
            )
    return adapted


def fingerprint(ref: ModelRef) -> str:
    """Tells one starting model from another without reading all of its weights.

    Of a local base the configuration and both ends of each weights file (the
    header names all tensors) are hashed, of an adapter everything, of a model
    on the hub its name.
    """
    digest = hashlib.sha256(ref.base_model.encode())
    for path in sorted(Path(ref.base_model).glob("*.safetensors")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size}\n".encode())
            for start in (0, max(0, size - _SAMPLED_BYTES)):
                file.seek(start)
                digest.update(file.read(_SAMPLED_BYTES))
    for path in (Path(ref.base_model) / "config.json", *_adapter_files(ref)):
        if path.is_file():
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _adapter_files(ref: ModelRef) -> tuple[Path, ...]:
    if ref.adapter is None:
        return ()
    return Path(ref.adapter) / _ADAPTER_CONFIG, Path(ref.adapter) / _ADAPTER_WEIGHTS


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    for config in model.peft_config.values():
        assert isinstance(config, LoraConfig)
        if config.target_modules and not isinstance(config.target_modules, str):
            # Else a set, whose order would make two equal trainings differ in a byte.
            config.target_modules = sorted(config.target_modules)
    # A README, which nobody publishes, and which takes longer than the weights.
    model.create_or_update_model_card = _no_model_card  # type: ignore[method-assign]
    # Else peft asks the hub whether the vocabulary was resized.
    model.save_pretrained(str(directory), save_embedding_layers=False)


def _no_model_card(output_dir: str) -> None:
    pass


def save_model(model: PreTrainedModel, directory: Path) -> None:
    """Write config and model*.safetensors."""
    model.save_pretrained(str(directory))


def label_window(model: PreTrainedModel | PeftModel, width: int, first_label: int) -> int:
    """How many last positions need logits, of ``width``, to predict from ``first_label`` on.

    All of them, for an architecture that cannot leave any out.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    leaves_out = "logits_to_keep" in inspect.signature(base.forward).parameters
    return width - first_label + 1 if leaves_out else width


def max_positions(model: PreTrainedModel | PeftModel) -> int | None:
    """The longest sequence the model was made for, if it says so."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def release_memory() -> None:
    """Give back what a finished request's models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _require_directory(base_model: str) -> None:
    """Say of a missing path that it is missing, instead of asking the hub for it."""
    path = Path(base_model)
    looks_like_path = path.is_absolute() or base_model.startswith(".") or len(path.parts) > 2
    if looks_like_path and not path.is_dir():
        raise FileNotFoundError("no such directory")
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ValueError("has no safetensors weights; pickled weights are refused")


def _require_adapter(directory: Path) -> None:
    for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"no {name} there")
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ValueError(f"holds {pickles[0]}; pickles are refused")
    # Names of modules that peft would import.
    config = json.loads((directory / _ADAPTER_CONFIG).read_bytes())
    for field in ("auto_mapping", "megatron_config"):
        if config.get(field):
            raise ValueError(f"{_ADAPTER_CONFIG} sets {field}, which is refused")


@contextmanager
def _bad_model(what: str) -> Iterator[None]:
    """Whatever a library says about an unusable model becomes one kind of failure."""
    try:
        yield
    except RequestFailed:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        complaint = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RequestFailed("bad_model", f"{what}: {complaint}") from error


@contextmanager
def _without_peft_noise() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield
