"""The documentation's pictures of pages. The test that looks at a page makes its picture, and fails if it is stale."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from playwright.async_api import Locator, Page

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
MAX_BYTES = 200_000
_KEYWORD = b"Shown text"
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


async def check_picture(part: Page | Locator, name: str) -> None:
    """Check that docs/pictures/NAME.png shows the text that this part of a page shows now.

    Pixels depend on a machine's fonts, so the text is compared: each picture contains the text that it shows.
    REWRITE_SNAPSHOTS=1 replaces the picture.
    """
    file = PICTURES / f"{name}.png"
    shown = await _text(part)
    if os.environ.get("REWRITE_SNAPSHOTS"):
        file.write_bytes(_with_text(await part.screenshot(), shown))
    picture = file.read_bytes()
    assert _text_in(picture) == shown, f"{file.name} is stale: REWRITE_SNAPSHOTS=1 replaces it"
    assert len(picture) < MAX_BYTES


async def _text(part: Page | Locator) -> str:
    """The text of a page and its frames, or of the frame that the locator is."""
    if isinstance(part, Page):
        return "\n".join([await frame.inner_text("body") for frame in part.frames])
    return await part.content_frame.locator("body").inner_text()


def _with_text(picture: bytes, text: str) -> bytes:
    """Return the PNG with the text in an iTXt chunk (PNG specification, 11.3.3.4)."""
    chunk = b"iTXt" + _KEYWORD + b"\0\1\0\0\0" + zlib.compress(text.encode(), 9)
    assert picture.endswith(_END)
    return b"".join(
        (
            picture.removesuffix(_END),
            struct.pack(">I", len(chunk) - 4),
            chunk,
            struct.pack(">I", zlib.crc32(chunk)),
            _END,
        )
    )


def _text_in(picture: bytes) -> str:
    _, found, after = picture.partition(b"iTXt" + _KEYWORD + b"\0\1\0\0\0")
    return zlib.decompressobj().decompress(after).decode() if found else ""
