"""Reads the body of a server's answer in pieces, up to a limit, so that an endless or compressed body can't fill the
memory.

The time is limited by the request's total timeout, which also covers the body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import StreamReader

MAX_POST_ANSWER = 64 * 1024
"""Maximum number of bytes that are read of the answer to a message. The rest is not needed."""
MAX_LOOKUP_ANSWER = 4 * 1024 * 1024
"""Maximum number of bytes, after decompression, of an answer that is needed as a whole: a look-up, a page of a list, a
token."""


class AnswerTooLong(Exception):
    """The answer is longer than it may be."""


async def read_start(content: StreamReader, limit: int) -> bytes:
    """Return at most `limit` bytes from the start of the body."""
    body = bytearray()
    while len(body) < limit and (part := await content.read(limit - len(body))):
        body += part
    return bytes(body)


async def read_whole(content: StreamReader, limit: int = MAX_LOOKUP_ANSWER) -> bytes:
    """Return the whole body. Raises `AnswerTooLong` if it has more than `limit` bytes."""
    body = await read_start(content, limit + 1)
    if len(body) > limit:
        raise AnswerTooLong(f"the answer is longer than {limit} bytes")
    return body
