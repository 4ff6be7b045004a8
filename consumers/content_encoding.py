"""A request's body as it was before it was compressed, in bounded memory.

gzip only. Inflates in small steps, so that a bomb is noticed by whoever counts the bytes
before it has grown, and never holds up the event loop for long.
"""

import zlib
from collections.abc import AsyncIterator

IDENTITY = "identity"
GZIP = "gzip"
ENCODINGS = (GZIP, IDENTITY)

_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_STEP_BYTES = 65_536


class CorruptEncodingError(Exception):
    """The body is not what its Content-Encoding says, or ends too early."""


async def gunzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What a gzip stream holds, of one or several members, at most 64 KiB at a time.

    Raises CorruptEncodingError.
    """
    member = zlib.decompressobj(_GZIP_WINDOW)
    is_begun = False
    async for chunk in chunks:
        waiting = chunk
        while waiting:
            if member.eof:
                member = zlib.decompressobj(_GZIP_WINDOW)
            is_begun = True
            try:
                inflated = member.decompress(waiting, _STEP_BYTES)
            except zlib.error as error:
                raise CorruptEncodingError(f"the body is not gzip: {error}") from error
            waiting = member.unused_data if member.eof else member.unconsumed_tail
            if inflated:
                yield inflated
    if is_begun and not member.eof:
        # The end of the input may still be in the decompressor when it hit the step's limit.
        rest = member.flush()
        if rest:
            yield rest
        if not member.eof:
            raise CorruptEncodingError("the gzip body ends too early")
