"""How many threads to calculate with: no more than the control group gives cores.

PyTorch counts the machine's cores. In a container that may use two of sixty-four, its threads
would wait for each other most of the time.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of a period, or max, and the period: control groups of version 2."""
_THREADS: Final = "OMP_NUM_THREADS"


def limit_threads(environment: MutableMapping[str, str], quota: Path = QUOTA) -> None:
    """Set OMP_NUM_THREADS where a quota asks for it and nobody has. Before torch is imported."""
    try:
        allowed, period = quota.read_text().split()
        cores = math.ceil(int(allowed) / int(period))
    except (OSError, ValueError):  # no control group, or no limit
        return
    environment.setdefault(_THREADS, str(max(1, cores)))
