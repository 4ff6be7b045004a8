"""How many weights a base model has, read from its files and not from the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

_MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file; the format's own limit."""


def count_parameters(base_model: str) -> int | None:
    """Of a local directory; None when it is a name on the hub, or its files are not readable."""
    try:
        files = sorted(Path(base_model).glob("*.safetensors"))
        return sum(map(_count, files)) if files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # loading it says what is wrong with it


def _count(file: Path) -> int:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > _MOST_HEADER_BYTES:
            raise ValueError(f"{file.name} is no safetensors file")
        header = json.loads(opened.read(size))
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )
