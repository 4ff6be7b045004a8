"""On which side of the split each prompt and each split group stands, for ever and for all lines.

Who asks before putting keys on a side has the turn SPLIT, so that nobody else does meanwhile.
"""

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, select

from daemon.store.dialect import CHUNK, insert_new
from daemon.store.tables import split_sides
from learning.events import OutputEvent, group_key, prompt_key
from learning.lifecycle import Role

SPLIT = "split"
"""The turn to put prompts on a side of the split: sides are for ever, and for all lines."""


def split_keys(output: OutputEvent) -> tuple[bytes, ...]:
    """What must stay on one side: its prompt's key, and its group's if any."""
    group = group_key(output)
    return (prompt_key(output),) if group is None else (prompt_key(output), group)


def known_sides(tx: Connection, keys: Collection[bytes]) -> dict[bytes, Role]:
    """The side of each key that stands on one."""
    wanted = sorted(keys)
    sides: dict[bytes, Role] = {}
    for start in range(0, len(wanted), CHUNK):
        rows = tx.execute(
            select(split_sides).where(split_sides.c.key.in_(wanted[start : start + CHUNK]))
        )
        sides.update((row.key, Role(row.side)) for row in rows)
    return sides


def take_sides(tx: Connection, side: Role, keys: Iterable[bytes]) -> None:
    """Put keys on a side of the split; one that stands on a side already stays there."""
    rows = [{"key": key, "side": side} for key in sorted(keys)]
    if rows:
        tx.execute(insert_new(tx, split_sides), rows)
