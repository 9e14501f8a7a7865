"""Renders operators' templates in a process of its own, which has limits of time and memory.

CPython can't stop a running template from inside its process, but the system can end a process. `TemplateProcess`
starts the process before the first message and keeps it for the next ones. If a message exceeds a limit,
the process ends, and the next message gets a new one.

The process gets requests from its parent by a socket. It ends when the socket is closed, so it never outlives its
parent for longer than one message takes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from dispatcher.parsing.yaml import Problem
from dispatcher.rendering.compiled import OUT_OF_MEMORY, CompiledTemplates, TemplateError
from dispatcher.rendering.context import Context
from dispatcher.rendering.folders import TemplateFolders, Templates

if TYPE_CHECKING:  # for types only: the process does not import pydantic
    from channels.contract import Content

CPU_LIMIT = 1.0
"""Maximum number of seconds of processor time for one message."""
TIME_LIMIT = 3.0
"""Maximum number of seconds for one message. On a busy machine, a message takes longer than its processor time."""
MEMORY_LIMIT = 256 * 1024 * 1024
"""Maximum number of bytes of the process's address space (RLIMIT_AS). macOS ignores this limit."""
START_LIMIT = 30.0
"""Maximum number of seconds for starting the process."""
MAX_REPLY = 4 * 1024 * 1024
"""Maximum number of bytes of a rendered message as JSON. It is far above what any provider takes."""
MAX_COMPILED = 16
"""Maximum number of folder lists whose compiled templates the process keeps."""
_ALARM = signal.SIGPROF
"""The system sends this signal at `CPU_LIMIT`, and the parent at `TIME_LIMIT`. It ends the process."""
_PROGRAM = "from dispatcher.rendering.template_process import main; main()"
_TEMPLATE_FILE = re.compile(r'File "([^"\n]+\.(?:j2|css))"')


class _Request(NamedTuple):
    """What the process is asked for: to render a channel's message, or to parse its templates if `context` is None."""

    owner: int
    """Identifies who asks. The process compiles the templates once for each owner."""
    folders: TemplateFolders
    templates: Templates
    context: Context | None


class _Ended(Exception):
    """The process ended during a request. `file`: the template that ran then; None if it is not known."""

    def __init__(self, reason: str, file: Path | None = None) -> None:
        super().__init__(reason)
        self.file = file


class TemplateProcess:
    """The process, from the side of its parent. Can be used by several threads; one request runs at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: _Running | None = None

    def ask(self, request: _Request) -> Mapping[str, Any]:
        """Return the process's reply. Takes at most a few seconds. Raises TemplateError if the process ended during the
        request.
        """
        with self._lock:
            try:
                if self._running is None:
                    self._running = _Running(self)
                reply = self._running.ask(request)
            except _Ended as ended:
                self._running = None
                file = ended.file or request.folders.main_file(request.templates)
                raise TemplateError(Problem(file, 0, str(ended)), stopped=True) from None
            if reply.get("stopped"):
                self._running.end()
                self._running = None
            return reply


_shared = TemplateProcess()
"""The process of all renderers of this program."""
_owners = count(1)


def new_owner() -> int:
    """Return a number that identifies the templates of one renderer. A renderer with a new number sees changed files,
    because the process reads and compiles the templates once for each number.
    """
    return next(_owners)


class IsolatedTemplates(NamedTuple):
    """The templates of some folders, rendered in the process. The methods are those of `CompiledTemplates`."""

    owner: int
    folders: TemplateFolders

    def render(self, templates: Templates, context: Context) -> Content:
        """Render a channel's message. Raises TemplateError."""
        reply = _shared.ask(_Request(*self, templates, context))
        if "problems" in reply:
            raise TemplateError(_problems(reply)[0], stopped=reply["stopped"])
        content: Content = reply["content"]
        return content

    def parse(self, templates: Templates) -> list[Problem]:
        """Parse a channel's templates, and return the problems."""
        try:
            return _problems(_shared.ask(_Request(*self, templates, None)))
        except TemplateError as error:
            return [error.problem]


class _Running:
    """The parent's side of one running process."""

    def __init__(self, owner: object) -> None:
        """Start the process. It ends at the latest when `owner` is garbage-collected. Raises `_Ended`."""
        self._connection, other_side = socket.socketpair()
        command = [sys.executable, "-P", "-c", _PROGRAM, str(other_side.fileno())]
        with other_side:
            self._process = subprocess.Popen(  # noqa: S603 - it runs this module
                command,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # no secrets of the environment
                pass_fds=[other_side.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        self.end = weakref.finalize(owner, _end, self._process, self._connection)
        self._receive(time.monotonic() + START_LIMIT)

    def ask(self, request: _Request) -> Mapping[str, Any]:
        """Send a request, and return the reply. Raises `_Ended`."""
        try:
            self._connection.settimeout(TIME_LIMIT)
            _send(self._connection, pickle.dumps(request))
        except OSError:
            raise self._ended() from None
        deadline = time.monotonic() + TIME_LIMIT
        loaded = None
        while "loading" in (reply := json.loads(self._receive(deadline, loaded))):
            loaded = Path(reply["loading"])
        return dict(reply)

    def _receive(self, deadline: float, loaded: Path | None = None) -> bytes:
        try:
            return _receive(self._connection, deadline)
        except (OSError, EOFError):
            raise self._ended(loaded) from None

    def _ended(self, loaded: Path | None = None) -> _Ended:
        """End the process, and return the reason. Its standard error says which template ran at the end.

        `loaded`: the file that was loaded last during this request. It was perhaps not compiled yet.
        """
        try:
            status, limit = self._process.wait(0.2), CPU_LIMIT
        except subprocess.TimeoutExpired:  # the deadline is over
            status, limit = -_ALARM, TIME_LIMIT
            self._process.send_signal(_ALARM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
        self._process.kill()
        assert self._process.stderr is not None  # noqa: S101 - for the type checker
        said = self._process.stderr.read(65536).decode(errors="replace")
        self.end()
        if status == -_ALARM:
            file = _TEMPLATE_FILE.search(said)
            reason = f"stopped after {limit:g} s: it loops too long, or makes too much"
            return _Ended(reason, Path(file[1]) if file is not None else loaded)
        if status < 0:
            return _Ended(f"its process was ended by {signal.Signals(-status).name}: it may need too much memory")
        *_, last = ["no reason was given", *said.split("\n")[:-1]]
        return _Ended(f"the process that renders templates ended: {last}")


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _problems(reply: Mapping[str, Any]) -> list[Problem]:
    return [Problem(Path(file), line, message) for file, line, message in reply["problems"]]


def main() -> None:
    """Reply to requests until the parent closes the connection. The process runs this function."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # a terminal sends them to the parent's processes, too
        signal.signal(number, signal.SIG_IGN)
    # The alarm ends the process, even inside C code, after faulthandler has written which template runs.
    faulthandler.register(_ALARM, all_threads=False, chain=True)
    with suppress(ValueError, OSError):  # the system has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    templates: _Templates = {}
    _send(connection, b"{}")
    while True:
        try:
            request: _Request = pickle.loads(_receive(connection))  # noqa: S301 - from our own parent
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
        reply = _reply(_compiled(templates, request, connection), request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(connection, reply)


_Templates = dict[tuple[int, tuple[Path, ...]], CompiledTemplates]


def _compiled(templates: _Templates, request: _Request, connection: socket.socket) -> CompiledTemplates:
    """Return the templates for a request. The `MAX_COMPILED` that were used last are kept in `templates`."""

    def send_file(file: Path) -> None:
        _send(connection, json.dumps({"loading": str(file)}).encode())

    key = request.owner, request.folders.folders
    compiled = templates.pop(key, None) or CompiledTemplates(request.folders, send_file)
    templates[key] = compiled
    if len(templates) > MAX_COMPILED:
        del templates[next(iter(templates))]
    return compiled


def _reply(compiled: CompiledTemplates, request: _Request) -> bytes:
    """Return the reply as JSON: `content`, or `problems` and `stopped`."""
    folders, templates = request.folders, request.templates
    if request.context is None:
        return _failure(compiled.parse(templates))
    try:
        reply = orjson.dumps({"content": compiled.render(templates, request.context)})
    except TemplateError as error:
        return _failure([error.problem], stopped=error.stopped)
    except TypeError as error:
        return _failure([Problem(folders.main_file(templates), 0, f"the message is no JSON: {error}")])
    except MemoryError:
        return _failure([Problem(folders.main_file(templates), 0, OUT_OF_MEMORY)], stopped=True)
    if len(reply) > MAX_REPLY:
        return _failure([Problem(folders.main_file(templates), 0, f"the message is larger than {MAX_REPLY} bytes")])
    return reply


def _failure(problems: Sequence[Problem], *, stopped: bool = False) -> bytes:
    rows = [(str(problem.file), problem.line, problem.message) for problem in problems]
    return json.dumps({"problems": rows, "stopped": stopped}).encode()  # json, because a path may be no valid UTF-8


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(len(message).to_bytes(4, "big") + message)


def _receive(connection: socket.socket, deadline: float | None = None) -> bytes:
    """Return the next message. Raises EOFError if the connection was closed, and TimeoutError after `deadline`."""
    size = int.from_bytes(_read(connection, 4, deadline), "big")
    return _read(connection, size, deadline)


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    read = bytearray()
    while len(read) < size:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
        if not (piece := connection.recv(min(size - len(read), 65536))):
            raise EOFError
        read += piece
    return bytes(read)
