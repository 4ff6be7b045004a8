"""What a text is recognised by when it was changed a little, without any library.

MinHash by one permutation (Li, Owen and Zhang 2012) with optimal densification (Shrivastava
2017): each three words in a row are hashed once, whatever the size of the signature, so that
a text costs as little as its words. finetune/datasets/likeness.py does the same for files,
with numpy and datasketch, which a daemon that only looks at events should not have to load.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from struct import iter_unpack, pack

WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
"""A word, a sign, or a character of a script that has no spaces."""
WORDS_IN_A_ROW = 3
MOST_WORDS = 2_000
"""Of a longer text the first and the last so many words count together."""
BANDS = 12
BINS_IN_A_BAND = 5
BINS = BANDS * BINS_IN_A_BAND
"""Texts of a likeness of 0.8 share a band in 99 of 100 cases, of 0.5 in 32, of 0.3 in 3."""

_EMPTY = 2**32


def words_of(text: str) -> list[str]:
    """The words and signs of a text without regard to case, in their order."""
    longest = 20 * MOST_WORDS
    if len(text) > 2 * longest:
        text = f"{text[:longest]} {text[-longest:]}"
    words = WORD.findall(text.casefold())
    if len(words) > MOST_WORDS:
        return words[: MOST_WORDS // 2] + words[-(MOST_WORDS // 2) :]
    return words


@lru_cache(maxsize=16_384)
def hash_of(text: str) -> int:
    """64 bits of BLAKE2b: nobody can choose what a text shares its place with."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


_WALKS = [sorted(range(BINS), key=lambda n: hash_of(f"{empty} {n}")) for empty in range(BINS)]
"""Where each bin that is empty looks for a value: in all texts alike, from each bin otherwise."""


def signature(words: Sequence[str]) -> bytes:
    """BINS numbers of 32 bits, of which two texts share as many as they are alike.

    Of a text with fewer than three words all that it has is one shingle.
    """
    bins = [_EMPTY] * BINS
    for start in range(max(1, len(words) - WORDS_IN_A_ROW + 1)):
        hashed = hash_of(" ".join(words[start : start + WORDS_IN_A_ROW]))
        where, value = hashed % BINS, hashed >> 32
        bins[where] = min(bins[where], value)
    full = [value != _EMPTY for value in bins]
    for empty, walk in enumerate(_WALKS):
        if not full[empty]:
            bins[empty] = next(bins[other] for other in walk if full[other])
    return pack(f"<{BINS}I", *bins)


def likeness(one: bytes, other: bytes) -> float:
    """The estimated share of three words in a row that two texts have in common, in [0, 1].

    One standard deviation of an estimate of 0.8 is 0.05.
    """
    pairs = zip(iter_unpack("<I", one), iter_unpack("<I", other), strict=True)
    return sum(mine == theirs for mine, theirs in pairs) / BINS


def band_keys(namespace: str, signed: bytes) -> Iterator[bytes]:
    """A key of 16 bytes for each band; texts of one namespace that are alike share one."""
    size = 4 * BINS_IN_A_BAND
    for band in range(BANDS):
        part = signed[band * size : (band + 1) * size]
        yield blake2b(f"{namespace}\n{band}\n".encode() + part, digest_size=16).digest()
