"""Find the rows that say the same, or nearly the same, in bounded memory.

Digests and signatures go to files in a temporary folder (about a kilobyte a row); what stays
in memory is 8 bytes a row for each answer, and the part of the digests that is being sorted.
Rows are numbered from 0 in the order in which they are added.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from finetune.datasets.formats import Example
from finetune.datasets.likeness import (
    SIGNATURE_SIZE,
    Signature,
    band_keys,
    banding,
    likeness,
    signer,
)
from finetune.datasets.same_keys import SameKeys
from learning.events import digest, key_of_prompt

_SIGNATURE_BYTES = 4 * SIGNATURE_SIZE

Firsts = NDArray[np.int64]
"""For each row the first of those that it belongs with: itself, when there is none before."""


class Pair(NamedTuple):
    """Two rows that are alike; `earlier` < `later`."""

    earlier: int
    later: int
    likeness: float


class Twins:
    """Collects rows, then tells which belong together."""

    def __init__(self, wholes: SameKeys, prompts: SameKeys, alike: "_Alike | None") -> None:
        self._wholes, self._prompts, self._alike = wholes, prompts, alike
        self._n = 0

    @classmethod
    @contextmanager
    def opened(cls, *, near: float | None) -> Iterator[Self]:
        """With files of its own, which are removed at the end.

        `near`: the likeness in (0, 1] from which on rows are near-duplicates. None: they are
        not looked for, which saves most of the time.
        """
        with ExitStack() as opened:
            folder = Path(opened.enter_context(TemporaryDirectory(prefix="learnd-")))
            wholes, prompts = (
                opened.enter_context(SameKeys.opened(folder, name))
                for name in ("wholes", "prompts")
            )
            alike = opened.enter_context(_Alike.opened(folder, near)) if near is not None else None
            yield cls(wholes, prompts, alike)

    def __len__(self) -> int:
        return self._n

    def add(self, example: Example, group: str | None = None) -> None:
        """The next row. Rows of one group count as of one prompt."""
        row, self._n = self._n, self._n + 1
        texts = [f"{turn['role']}\n{turn['content']}" for turn in example.prompt]
        whole = [*texts, example.answer, example.rejected or "", str(example.label)]
        self._wholes.add(digest("\x00".join(whole)), row)
        self._prompts.add(key_of_prompt(turn["content"] for turn in example.prompt), row)
        if group is not None:
            self._prompts.add(digest(f"split group\n{group}"), row)
        if self._alike is not None:
            self._alike.add(" ".join(turn["content"] for turn in example.messages), row)

    def same(self) -> Firsts:
        """Which rows are exact duplicates."""
        return self._firsts(self._wholes.groups())

    def same_prompt(self) -> Firsts:
        """Which rows have the same prompt but for case and white space, or the same group."""
        return self._firsts(self._prompts.groups())

    def near(self) -> Iterator[Pair]:
        """Pairs of rows that are alike, exact duplicates too; one may come more than once."""
        return iter(()) if self._alike is None else self._alike.pairs()

    def _firsts(self, groups: Iterable[NDArray[np.int64]]) -> Firsts:
        union = Union(self._n)
        for rows in groups:
            first, *others = rows.tolist()
            for row in others:
                union.join(first, row)
        return union.firsts()


class _Alike:
    """Signatures on disk, and the bands by which those that may be alike meet."""

    def __init__(self, threshold: float, bands: SameKeys, signatures: BinaryIO) -> None:
        self._threshold, self._bands, self._signatures = threshold, bands, signatures
        self._sign = signer()
        self._banding = banding(threshold)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, threshold: float) -> Iterator[Self]:
        """With files in a folder."""
        with (
            SameKeys.opened(folder, "bands") as bands,
            (folder / "signatures").open("w+b") as signatures,
        ):
            yield cls(threshold, bands, signatures)

    def add(self, text: str, row: int) -> None:
        """The text of the next row."""
        signature = self._sign(text)
        self._signatures.write(signature.tobytes())
        for key in band_keys(signature, self._banding):
            self._bands.add(key, row)

    def pairs(self) -> Iterator[Pair]:
        """See Twins.near.

        Of many rows that share a band each is compared with the first and with the one before
        it: a thousand of them cost two thousand comparisons, and not half a million.
        """
        for rows in self._bands.groups():
            first, *others = rows.tolist()
            before, leader = first, self._signature(first)
            latest = leader
            for row in others:
                signature = self._signature(row)
                for earlier, theirs in {first: leader, before: latest}.items():
                    alike = likeness(signature, theirs)
                    if alike >= self._threshold:
                        yield Pair(earlier, row, alike)
                before, latest = row, signature

    def _signature(self, row: int) -> Signature:
        self._signatures.seek(row * _SIGNATURE_BYTES)
        return np.frombuffer(self._signatures.read(_SIGNATURE_BYTES), dtype=np.uint32)


class Union:
    """Which of n rows hang together through pairs, directly or not. 8 bytes a row."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n, dtype=np.int64)

    def join(self, one: int, other: int) -> None:
        """Two rows belong together."""
        first, second = sorted((self._root(one), self._root(other)))
        self._parent[second] = first

    def firsts(self) -> Firsts:
        """For each row the first of those that it hangs together with."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above
        return self._parent

    def _root(self, row: int) -> int:
        parent = self._parent
        while (above := int(parent[row])) != row:
            parent[row] = parent[above]
            row = int(parent[row])
        return row
