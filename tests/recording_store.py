"""A store that only keeps what it is given. The real one is tested in tests/contract."""

from collections.abc import Collection, Sequence

from learning.facts import EventsStored
from learning.ports import Block, Position


class RecordingStore:
    """Implements learning.ports.IntakeStore as far as blocks go."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.failure: Exception | None = None

    async def claim(
        self, source: str, partitions: Collection[tuple[str, int]]
    ) -> Sequence[Position]:
        raise NotImplementedError

    async def rewind(self, source: str, claimed: Position, next_offset: int) -> Position:
        raise NotImplementedError

    async def append(self, *blocks: Block) -> EventsStored:
        if self.failure is not None:
            raise self.failure
        self.blocks.extend(blocks)
        return EventsStored(blocks[0].source, duplicates=len(self.blocks))
