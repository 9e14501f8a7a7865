"""Makes text from outside safe to show: a terminal obeys some characters, and others change how the rest is read.

Sources: ECMA-48 (control sequences, C1), xterm's control sequences (OSC), Unicode 16, 3.10 and UAX 9 (bidi controls).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0, DEL and C1, without the tab and the line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidi controls
    "\u2028\u2029"  # line and paragraph separator
    "\xad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # invisible format characters
    "\ud800-\udfff"  # surrogates: no encoding can write them
)
_IN_LINES = re.compile(f"[{_UNSAFE}]")
_IN_A_LINE = re.compile(f"[{_UNSAFE}\t\n]")
_NON_ASCII = re.compile(r"[^\x00-\x7f]")


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return the text with each character that is not plain text as a JSON escape, such as `\u001b`.

    The escapes are JSON's, so a JSON document keeps its meaning. With `lines`, tabs and line feeds stay as they are.
    """
    return (_IN_LINES if lines else _IN_A_LINE).sub(_escape, text)


def visible_data(data: Any) -> Any:
    """Return data made of mappings, lists and text, with all text as `visible` shows it, and with its lines."""
    match data:
        case str():
            return visible(data, lines=True)
        case Mapping():
            return {visible(str(name)): visible_data(value) for name, value in data.items()}
        case list() | tuple():
            return [visible_data(value) for value in data]
        case _:
            return data


def ascii_only(json: str) -> str:
    """Return a JSON document with each character beyond ASCII as an escape."""
    return _NON_ASCII.sub(_escape, json)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
