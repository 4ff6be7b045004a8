"""Which code applies the rules of screening: learnd's own, and what other packages registered.

Apart from screener.py, because the daemon asks for this without the validators.
"""

from importlib.metadata import entry_points, version

ENTRY_POINTS = "learnd.screeners"


def validators_in_force() -> str:
    """Names and versions of the code that applies the rules; other code may judge otherwise."""
    outside = {
        f"{entry.name}={entry.value} {entry.dist.version if entry.dist is not None else ''}"
        for entry in entry_points(group=ENTRY_POINTS)
    }
    return "; ".join([f"learnd {version('learnd')}", *sorted(outside)])
