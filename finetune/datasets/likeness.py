"""What a text is recognised by when it was changed a little: shingles of words, and MinHash.

Likeness is the Jaccard similarity of two texts' sets of three words in a row, in [0, 1],
without regard to case and white space. One word changed in a hundred leaves about 0.94, one
in ten about 0.45: so short texts from one template stay apart, which is right, because there
the one word is the point. Where a script has no spaces each character is a word.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from learning.events import digest

SIGNATURE_SIZE = 128
"""Hash functions; the estimate of a likeness of 0.8 is off by 0.035, one standard deviation."""
MOST_WORDS = 5_000
"""Of a longer text the first and the last so many words count together."""

Signature = NDArray[np.uint32]

_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_WORDS_IN_A_ROW = 3
# Odd, so that no word's place is lost; arrays of 32 bits wrap around, as is meant.
_FIRST, _SECOND = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)


def shingles(text: str) -> NDArray[np.uint32]:
    """A hash of each three words in a row; of a shorter text one of all that it has."""
    words = _WORD.findall(text.casefold())
    if len(words) > MOST_WORDS:
        words = words[: MOST_WORDS // 2] + words[-(MOST_WORDS // 2) :]
    if len(words) < _WORDS_IN_A_ROW:
        return np.array([zlib.crc32(" ".join(words).encode())], dtype=np.uint32)
    hashes = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint32)
    return (hashes[:-2] * _FIRST + hashes[1:-1]) * _SECOND + hashes[2:]


def signer() -> Callable[[str], Signature]:
    """Makes the signature of a text, by which its likeness to others is estimated."""
    from datasketch import MinHash  # type: ignore[import-untyped]

    empty = MinHash(num_perm=SIGNATURE_SIZE, hashfunc=int)  # they are hashes already

    def sign(text: str) -> Signature:
        sketch = empty.copy()
        sketch.update_batch(shingles(text).tolist())
        signature: Signature = sketch.hashvalues.astype(np.uint32)
        return signature

    return sign


def banding(threshold: float) -> Sequence[slice]:
    """The bands of a signature of which alike texts share one, most likely, and others none."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=SIGNATURE_SIZE)
    return [slice(begin, end) for begin, end in index.hashranges]


def band_keys(signature: Signature, bands: Sequence[slice]) -> Iterator[bytes]:
    """A key of 16 bytes for each band."""
    for band in bands:
        yield digest(f"{band.start}:{signature[band].tobytes().hex()}")


def likeness(one: Signature, other: Signature) -> float:
    """The estimated likeness of two texts, in [0, 1]."""
    return float(np.mean(one == other))
