"""The cause of an execution's failure: a fingerprint that all executions share that failed in the same way.

The rules are fixed, and look at nothing but the error: every replica gives an error the same fingerprint, and none
depends on what came before. A change of the rules needs a new `VERSION`, so that a recorded fingerprint never gets
another meaning. docs/causes.md describes the rules.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from channels.common.text import cut
from dispatcher.rendering.text import one_line
from dispatcher.rendering.traceback import summarize

if TYPE_CHECKING:  # for types only, as in `context.py`
    from dispatcher.model.event import Event

VERSION = "v1"
LONGEST_NAME = 200
_LONGEST_PLACE = 80
_COMPARED = 200
"""The first so many characters of a line are compared, after its variable parts are left out."""
_ANY = "…"
"""Stands for each variable part of a text."""

_SHORTEST_EXECUTION = 5
"""An execution's name that is shorter may be a word."""
_URL = re.compile(r"\b[A-Za-z][\w+.-]{0,20}://[^\s'\"`<>()\[\]{},;|]*")
_NODE = re.compile(r"\bNode\[[^\]\n]{1,100}\]")
_WORD = re.compile(r"[^\s'\"`()\[\]{}<>,;=|]+")
_RUN = re.compile(r"…|[^\W_…]+")
_REPEATED_IN_WORD = re.compile(r"…(?:[^\w…]*…)+")
_REPEATED = re.compile(r"(?<![^\s'\"`()\[\]{}<>,;=|])…(?:[\s,;]+…)+(?![^\s'\"`()\[\]{}<>,;=|])")
_NUMBER = re.compile(r"[+-]?[.]?\d[\w.,%+-]*")
"""A number, a date, or an id that begins with a digit."""

_HOST = re.compile(
    r"[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|edu|gov|io|ai|cloud|internal|local|localdomain|lan|corp|svc|example|invalid)"
    r"(?::\d+)?"
)
_COLONS = re.compile(r"[0-9a-fA-F.]*:[0-9a-fA-F.]*:[0-9a-fA-F.:]*")
"""A time of day, or an address of IPv6 or Ethernet."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_POD = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{8,10}-[bcdfghjklmnpqrstvwxz2456789]{5}(?![\w-])")
"""The end of the name of a deployment's pod: two texts in Kubernetes' alphabet (apimachinery `util/rand`)."""
_NODE_OR_VERSION = re.compile(r"(?:v|d?n)\d+")
"""Flyte's names of nodes, `n0` and `dn3`, and versions, `v1`."""
_EXECUTION = re.compile(r"[a-z](?:[bcdfghjklmnpqrstvwxz2456789]{19}|(?=[a-z]*\d)[0-9a-z]{19})")
"""The name that Flyte gives an execution (flyteadmin `common/executions.go`), also in its older forms."""
_HEX = re.compile(r"[0-9a-f]{7,}|[0-9A-F]{7,}")
_CHANGES = re.compile(r"\d(?=[^\W\d])|[^\W\d](?=\d)")
_LONG_ID = 16
_CODE = re.compile(r"errno|(?:exit|return|status|error)?code|status|http|(?:http)?error|signal|sqlstate", re.IGNORECASE)
"""A short number after such a word is a code, which says what went wrong."""
_LONGEST_CODE = 5
_IN_DATES = re.compile(r"Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec|AM|PM|UTC|GMT")
_UNIT = re.compile(r"[kKMGT]i?B|bytes?|ms|s|sec|seconds?|min|minutes?|h|hours?|days?")
"""After a number, a unit is part of it: `900 MiB` is `1.2 GiB`, and `1 second` is `2 seconds`."""
_FRAME = re.compile(r'^File "([^"\n]+)", line \d+(?:, in (.+))?$', re.MULTILINE)


class Cause(NamedTuple):
    """Why an execution failed, in a form that is the same for all executions that failed in the same way."""

    fingerprint: str
    """`v1:` and 16 hexadecimal digits; empty if the event has no error."""
    name: str
    """A short name for people, one line of at most `LONGEST_NAME` UTF-16 units; empty if the event has no error."""


NO_CAUSE = Cause("", "")


def cause_of(event: Event) -> Cause:
    """Return the cause that the event's error has. The time that it takes is linear in the length of the error."""
    error = event.error
    if error is None:
        return NO_CAUSE
    parts = summarize(error.message)
    execution = event.execution.name
    text, detail = [normalized(one, execution)[:_COMPARED] for one in (parts.summary, parts.detail)]
    text = text or normalized(one_line(error.code[: 4 * _COMPARED]).rpartition("|")[2])[:_COMPARED]
    if not text:
        return NO_CAUSE
    frames = _FRAME.findall(parts.frames)
    place = _place(*frames[-1]) if frames else ""
    digest = sha256(f"{text}\n{detail}\n{place}".encode(errors="surrogatepass")).hexdigest()
    shown = f"{text} {detail}" if text.endswith(":") and detail else text
    end = f" ({place})" if place else ""
    shown, end = shown.replace(_ANY, "..."), end.replace(_ANY, "...")  # so that mails stay ASCII
    return Cause(f"{VERSION}:{digest[:16]}", cut(shown, LONGEST_NAME - len(end)) + end)


def normalized(text: str, execution: str = "") -> str:
    """Return one line of an error without what differs from one execution to the next. Each such part becomes `…`.

    These are: numbers, times, ids, hashes, addresses, host names, URLs, paths, and Flyte's names of executions, nodes
    and pods. `execution`: the name of the execution whose error it is.
    """
    if len(execution) >= _SHORTEST_EXECUTION and execution in text:
        text = re.sub(rf"(?<![\w-]){re.escape(execution)}(?:-[\w-]+)?(?![\w-])", _ANY, text)
    text = _NODE.sub(f"Node[{_ANY}]", text) if "Node[" in text else text
    text = _URL.sub(_ANY, text) if "://" in text else text
    before = ""

    def is_code(text: str) -> bool:
        return len(text) <= _LONGEST_CODE and _CODE.fullmatch(before) is not None

    def of_run(found: re.Match[str]) -> str:
        nonlocal before
        run = found[0]
        variable = _is_variable(run) or (before == _ANY and _UNIT.fullmatch(run) is not None)
        before = _ANY if variable and not is_code(run) else run
        return before

    def of_word(found: re.Match[str]) -> str:
        nonlocal before
        word = found[0]
        if word.isalpha():  # as most words are
            return of_run(found)
        core = word.lstrip(":!?*").rstrip(":!?*.")
        if _is_whole(core) and not is_code(core):
            before = _ANY
            return word.replace(core, _ANY, 1)
        word = _POD.sub(f"-{_ANY}", word)
        return _REPEATED_IN_WORD.sub(_ANY, _RUN.sub(of_run, word))

    return _REPEATED.sub(_ANY, _WORD.sub(of_word, text))


def _is_whole(word: str) -> bool:
    """True if the whole word is variable: an address, a path, a time, or an id with what belongs to it."""
    if "@" in word or (("/" in word or "\\" in word) and _is_path(word)):
        return True
    if _NUMBER.fullmatch(word) or _HOST.fullmatch(word) or _COLONS.fullmatch(word) or _UUID.fullmatch(word):
        return True
    return len(word) >= _LONG_ID and any(len(run) >= _LONG_ID and _is_variable(run) for run in _RUN.findall(word))


def _is_path(word: str) -> bool:
    """True if the word, which has a slash or backslash, names a file. `and/or` and `N/A` do not."""
    folder, _, name = word.replace("\\", "/").rpartition("/")
    return word[0] in "/~\\." or "/" in folder or "." in name


def _is_variable(run: str) -> bool:
    """True if letters and digits without a separator are a number or an id. `float32` and `sha256` are not."""
    if run.isalpha():
        rule = _IN_DATES if len(run) < 4 else _EXECUTION
        return rule.fullmatch(run) is not None
    return bool(
        run[0].isdigit()
        or run == _ANY
        or _NODE_OR_VERSION.fullmatch(run)
        or _EXECUTION.fullmatch(run)
        or _HEX.fullmatch(run)
        or len(_CHANGES.findall(run)) >= 3
        or len(run) >= _LONG_ID * 2
    )


@lru_cache(maxsize=1024)  # cached, because tracebacks name the same places again and again
def _place(path: str, function: str) -> str:
    """Return where the user's code raised the exception, without the line: `flows/train.py, fit`.

    The folder counts only if it is not the first one, because the same code lies below `/root` here and `/app` there.
    """
    absolute = path.startswith(("/", "\\")) or path[1:2] == ":"
    steps = [step for step in re.split(r"[/\\]", path) if step not in {"", ".", ".."}]
    *folders, file = steps or [path]
    folders = [step for step in (folders[1:] if absolute else folders) if not _is_temporary(step)]
    shown = "/".join((*folders[-1:], normalized(file)))
    return cut(f"{shown}, {function}" if function not in {"", "<module>"} else shown, _LONGEST_PLACE)


def _is_temporary(folder: str) -> bool:
    return folder.startswith("tmp") or _ANY in normalized(folder)
