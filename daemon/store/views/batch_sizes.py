"""Batch sizes: that of every line, and one with its past."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from daemon.store.batch_sizes import HISTORY, LineBatchSize, as_configured, of_line, sizes_of
from daemon.store.database import Database
from daemon.store.views.history import Step, history_of
from learning.batch_sizing import SizeRules
from learning.lines import ModelLines


@dataclass(frozen=True)
class BatchSizeDetail:
    """One line's batch size, its bounds and every change of it."""

    current: LineBatchSize
    rules: SizeRules
    history: Sequence[Step]


class BatchSizes:
    """Looks at the batch sizes of one database."""

    def __init__(
        self, database: Database, lines: ModelLines, rules: Callable[[], SizeRules]
    ) -> None:
        self._database = database
        self._lines = lines
        self._rules = rules

    async def every_line(self) -> Sequence[LineBatchSize]:
        """In the order of the lines' names."""

        def query(tx: Connection) -> list[LineBatchSize]:
            rules = self._rules()
            own = sizes_of(tx, rules)
            names = sorted({line.name for line in self._lines} | own.keys())
            return [own.get(name) or as_configured(name, rules) for name in names]

        return await self._database.read(query)

    async def one(self, line: str) -> BatchSizeDetail | None:
        """A line's size with its past; None when there is no such line."""

        def query(tx: Connection) -> BatchSizeDetail | None:
            rules = self._rules()
            current = of_line(tx, line, rules)
            if current.revision == 0 and self._lines.get(line) is None:
                return None
            return BatchSizeDetail(current, rules, history_of(tx, HISTORY, line))

        return await self._database.read(query)
