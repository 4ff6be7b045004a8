"""What a client does not take yet waits, in order, and is given when it does."""

import asyncio

from daemon.api.spool import IN_MEMORY_BYTES, Spool


async def all_of(spool: Spool) -> bytes:
    return b"".join([chunk async for chunk in spool.chunks()])


async def test_what_was_written_before_anybody_read_is_read() -> None:
    with Spool() as spool:
        for number in range(IN_MEMORY_BYTES // 1_000):
            spool.write(b"%1999d\n" % number)
        spool.complete()
        lines = (await all_of(spool)).split()
    assert lines == [b"%d" % number for number in range(IN_MEMORY_BYTES // 1_000)]


async def test_a_reader_gets_each_piece_as_it_is_written() -> None:
    with Spool() as spool:
        chunks = spool.chunks()
        for piece in (b"one", b"two", b"three"):
            reading = asyncio.ensure_future(anext(chunks))
            await asyncio.sleep(0)
            spool.write(piece)
            assert await reading == piece
        spool.complete()
        assert await anext(chunks, None) is None


async def test_an_empty_answer_ends() -> None:
    with Spool() as spool:
        spool.complete()
        assert await all_of(spool) == b""
