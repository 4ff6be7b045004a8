"""Follow JSONL files that others write, and store their lines with how far they are read.

A file's position is its path and the byte after the last stored line, moved in the
transaction that stores the lines: a restart goes on there. The last line waits for its line
feed. It keeps no file open, so it neither stops a rotation nor depends on being there.

When the bytes before a position are no longer those that were read, the path holds another
file. The former one is looked for beside it, by its fingerprint, and read to its end; then
the new one is read from its start. A renamed file that is watched itself goes on where its
former name was.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from consumers.file_backlog import Backlog, FileLag
from consumers.ingest import Ingest
from consumers.jsonl_file import JsonlFile, Signature, signature
from consumers.lines import Line, LineCutter
from consumers.reading import Record
from consumers.watched_files import Refused, files_of
from consumers.wire import STANDARD_LIMITS, Limits
from learning.facts import Announce, TopicRecreated
from learning.ports import (
    Block,
    EventKind,
    IntakeStore,
    KnownPositions,
    Origin,
    Position,
    PositionFencedError,
    PositionMove,
    StoreUnavailableError,
)

log = structlog.get_logger(__name__)

SOURCE = "file"
BLOCK_LINES = 2_000
LOOK_SECONDS = 1.0
"""How often files are looked at for something new."""
STORE_RETRY_SECONDS = 5.0
FENCED_SECONDS = 60.0
"""So long a file is left alone after another daemon claimed it."""
MOST_SIBLINGS = 1_000
"""So many files of a folder are looked at for one that was renamed."""


@dataclass
class _Followed:
    """One file under its path, and how far it is stored."""

    path: Path
    kind: EventKind
    position: Position
    read: Signature | None = None
    """What the file was like when it was read to its end."""
    backlog: Backlog = field(default_factory=Backlog)

    @property
    def offset(self) -> int:
        return self.position.next_offset or 0

    def is_what_was_read(self, file: JsonlFile) -> bool:
        return self.offset == 0 or file.fingerprint(self.offset) == self.position.fingerprint


class JsonlSource:
    """Follows the files of some folders until told to stop."""

    def __init__(
        self,
        ingest: Ingest,
        store: IntakeStore,
        known: KnownPositions,
        announce: Announce,
        closed: Callable[[EventKind], str | None],
        watched: Mapping[EventKind, Sequence[Path]],
        *,
        limits: Limits = STANDARD_LIMITS,
        look_seconds: float = LOOK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`closed` says why no event of a kind may be taken now, or None."""
        self._ingest = ingest
        self._store = store
        self._known = known
        self._announce = announce
        self._closed = closed
        self._watched = watched
        self._limits = limits
        self._look_seconds = look_seconds
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        self._files: dict[Path, _Followed] = {}
        self._fenced: dict[Path, float] = {}
        self._refused: frozenset[Refused] = frozenset()

    def lag(self) -> Mapping[EventKind, FileLag]:
        """What is not stored yet of each kind's files, as they were at the last look.

        A last line without its line feed counts too.
        """
        lags = {kind: FileLag() for kind, paths in self._watched.items() if paths}
        now = self._wall_clock()
        for file in self._files.values():
            n_bytes, since = file.backlog.behind(file.offset)
            sum_so_far = lags[file.kind]
            waited = max(0.0, now - since) if since is not None else 0.0
            lags[file.kind] = FileLag(
                sum_so_far.n_bytes + n_bytes, max(sum_so_far.oldest_seconds, waited)
            )
        return lags

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow until `stopping` is set; then end after the block that is being stored.

        The store and the files may be away for any time. What else goes wrong is raised.
        """
        while not stopping.is_set():
            pause = self._look_seconds
            try:
                await self.look(stopping)
            except StoreUnavailableError as error:
                pause = STORE_RETRY_SECONDS
                log.warning("the store is not available: files wait", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause)

    async def look(self, stopping: asyncio.Event) -> None:
        """Store every complete line that is there now. Raises StoreUnavailableError."""
        found = await asyncio.to_thread(self._find)
        self._files = {path: file for path, file in self._files.items() if path in found}
        await self._claim([path for path in found if path not in self._files], found)
        self._measure()
        # A file under a new name takes its position along before its former name loses it.
        for path in sorted(found, key=lambda path: (self._is_known(path), path)):
            followed = self._files.get(path)
            if followed is not None and not stopping.is_set():
                await self._follow(followed, found, stopping)

    def _measure(self) -> None:
        for path, followed in self._files.items():
            if (seen := signature(path)) is not None:
                followed.backlog.see(seen.n_bytes, seen.changed_ns / 1e9, followed.offset)

    def _is_known(self, path: Path) -> bool:
        followed = self._files.get(path)
        return followed is not None and followed.position.next_offset is not None

    def _find(self) -> Mapping[Path, EventKind]:
        found: dict[Path, EventKind] = {}
        refused: set[Refused] = set()
        for kind, paths in self._watched.items():
            for watched in paths:
                try:
                    for each in files_of(watched):
                        if isinstance(each, Refused):
                            refused.add(each)
                        elif found.setdefault(each, kind) is not kind:
                            refused.add(Refused(each, f"it is read as {found[each]} already"))
                except OSError as error:
                    refused.add(Refused(watched, error.strerror or repr(error)))
        for each in sorted(refused - self._refused, key=str):
            log.warning("a file is not read", path=str(each.path), why=each.why)
        self._refused = frozenset(refused)
        return found

    async def _claim(self, paths: Sequence[Path], kinds: Mapping[Path, EventKind]) -> None:
        now = self._monotonic()
        due = [path for path in paths if self._fenced.get(path, now) <= now]
        if due:
            claimed = await self._store.claim(SOURCE, [(str(path), 0) for path in due])
            for path, position in zip(due, claimed, strict=True):
                self._fenced.pop(path, None)
                self._files[path] = _Followed(path, kinds[path], position)

    async def _follow(
        self, followed: _Followed, found: Mapping[Path, EventKind], stopping: asyncio.Event
    ) -> None:
        """Read a file on from its position, whatever became of it meanwhile."""
        seen = signature(followed.path)
        if seen is None or seen == followed.read:
            return
        try:
            with JsonlFile(followed.path) as file:
                if followed.position.next_offset is None:
                    await self._take_over(followed, file)
                if not followed.is_what_was_read(file) and not await self._begin_anew(
                    followed, found, stopping
                ):
                    return
                if await self._read(followed, file, stopping):
                    followed.read = seen
        except OSError as error:
            followed.read = seen
            log.warning("a file cannot be read", path=str(followed.path), error=repr(error))
        except PositionFencedError as error:
            log.warning("another daemon reads this file", path=str(followed.path), error=str(error))
            del self._files[followed.path]
            self._fenced[followed.path] = self._monotonic() + FENCED_SECONDS

    async def _read(self, followed: _Followed, file: JsonlFile, stopping: asyncio.Event) -> bool:
        """Store complete lines up to the end; whether it was reached."""
        at = followed.offset
        cutter = LineCutter(self._limits.max_bytes, offset=at)
        while not stopping.is_set() and self._closed(followed.kind) is None:
            lines, after = await asyncio.to_thread(file.lines, cutter, at)
            for start in range(0, len(lines), BLOCK_LINES):
                if not await self._store_lines(followed, file, lines[start : start + BLOCK_LINES]):
                    return False
            if after == at:
                return True
            at = after
        return False

    async def _store_lines(
        self, followed: _Followed, file: JsonlFile, lines: Sequence[Line]
    ) -> bool:
        """Store some lines; not when the file was cut short while it was read."""
        end = lines[-1].end
        fingerprint = file.fingerprint(end)
        if fingerprint is None:
            return False
        topic = str(followed.path)
        records = (
            Record(followed.kind, line.raw, Origin(SOURCE, topic, 0, line.begin))
            for line in lines
            if line.raw.strip()
        )
        move = PositionMove(followed.position, end, fingerprint)
        await self._ingest.store_block(SOURCE, records, move)
        followed.position = Position(topic, 0, followed.position.epoch, end, fingerprint)
        return True

    # --- files that are no longer what they were ------------------------------------------

    async def _take_over(self, followed: _Followed, file: JsonlFile) -> None:
        """Go on where another name of this file was, when that name stands for it no longer."""
        for known in await self._known.of(SOURCE):
            former = Path(known.topic)
            if former.parent != followed.path.parent or former == followed.path:
                continue
            if not known.next_offset or known.fingerprint is None:
                continue
            if file.fingerprint(known.next_offset) != known.fingerprint:
                continue
            if _has_at(former, known):
                continue  # a copy, and not a new name
            move = PositionMove(followed.position, known.next_offset, known.fingerprint)
            await self._store.append(Block(SOURCE, move=move))
            followed.position = Position(
                str(followed.path), 0, followed.position.epoch, known.next_offset, known.fingerprint
            )
            log.info("a file has a new name: reading on", path=str(followed.path), was=known.topic)
            return

    async def _begin_anew(
        self, followed: _Followed, found: Mapping[Path, EventKind], stopping: asyncio.Event
    ) -> bool:
        """Read what is left of the former file, where it is to be found, then start again.

        Returns whether that is done.
        """
        former = await asyncio.to_thread(_renamed, followed)
        if former is not None and former not in found:  # a watched one follows itself
            with JsonlFile(former) as file:
                if not await self._read(followed, file, stopping):
                    return False
        log.warning(
            "a file was truncated or replaced: it is read from its start",
            path=str(followed.path),
            former=str(former) if former is not None else "not found: its unread rest is lost",
        )
        stored = followed.offset
        followed.position = await self._store.rewind(SOURCE, followed.position, 0)
        self._announce(TopicRecreated(str(followed.path), 0, stored, 0))
        return True


def _has_at(path: Path, position: Position) -> bool:
    """Whether the file of this path is the one that was read up to a position."""
    try:
        with JsonlFile(path) as file:
            return file.fingerprint(position.next_offset or 0) == position.fingerprint
    except OSError:
        return False


def _renamed(followed: _Followed) -> Path | None:
    """The file beside this one that was read under its name."""
    for path in sorted(followed.path.parent.iterdir())[:MOST_SIBLINGS]:
        if path.is_file() and _has_at(path, followed.position):
            return path
    return None
