"""A gzip body is inflated in small steps, whatever it holds and however it comes."""

import gzip
from collections.abc import AsyncIterator, Iterable

import pytest

from consumers.content_encoding import CorruptEncodingError, gunzipped


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def inflated(*chunks: bytes) -> list[bytes]:
    return [chunk async for chunk in gunzipped(stream(chunks))]


@pytest.mark.parametrize("content", [b"", b"x", b"a line\n" * 100_000])
@pytest.mark.parametrize("step", [1, 100_000])
async def test_what_was_compressed_comes_back(content: bytes, step: int) -> None:
    packed = gzip.compress(content)
    pieces = [packed[at : at + step] for at in range(0, len(packed), step)]
    assert b"".join(await inflated(*pieces)) == content


async def test_members_one_after_another_are_one_content() -> None:
    assert b"".join(await inflated(gzip.compress(b"one\n") + gzip.compress(b"two\n"))) == (
        b"one\ntwo\n"
    )


async def test_a_bomb_comes_in_small_pieces() -> None:
    pieces = await inflated(gzip.compress(b"\0" * 20_000_000))
    assert max(map(len, pieces)) <= 65_536
    assert sum(map(len, pieces)) == 20_000_000


@pytest.mark.parametrize(
    "packed", [b"not gzip at all", gzip.compress(b"x" * 500)[:-9]], ids=["no gzip", "cut off"]
)
async def test_what_is_cut_off_or_no_gzip_is_an_error(packed: bytes) -> None:
    with pytest.raises(CorruptEncodingError):
        await inflated(packed)


async def test_an_empty_body_is_empty() -> None:
    assert await inflated() == []
