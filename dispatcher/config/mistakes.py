"""Mistakes in the settings, as sentences: each names its place, the key, and what to write instead."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dispatcher.parsing.validation_errors import message_of, model_in, option_hint
from dispatcher.parsing.yaml import Document, readable

PREFIX = "DISPATCHER__"
"""The beginning of the names of environment variables that are settings."""
_OF_KUBERNETES = re.compile(
    r"DISPATCHER_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)"
)
"""The variables that Kubernetes sets for services whose name is `dispatcher`, or begins with it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where settings come from: the file, if there is one, and its content."""

    path: Path | None = None
    document: Document = field(default_factory=lambda: Document({}))

    def place(self, key: Sequence[str | int]) -> str:
        """Return the place of a setting, as the beginning of a message: `FILE:LINE: ` or `VARIABLE: `."""
        names = [PREFIX + "__".join(map(str, key[:length])).upper() for length in range(len(key), 0, -1)]
        given = variables()
        if names and names[0] in given:
            return f"{names[0]}: "
        in_file = self._value(key)
        if not isinstance(in_file, dict | list):  # options in variables replace any other value in the file
            below = [name for name in given if names and name.startswith(f"{names[0]}__")]
            above = [name for name in names if name in given and in_file is None]
            for name in (*below, *above):
                return f"{name}: "
        if self.path is None:
            return ""
        line = self.document.line_of(key) if key else 0
        return f"{readable(self.path)}:{line}: " if line else f"{readable(self.path)}: "

    def steps(self, key: str) -> tuple[str | int, ...]:
        """Return the steps of a key such as `contacts.ml@example.com.email`. A name in the file may have dots."""
        steps: tuple[str | int, ...] = ()
        while key:
            inside = self._value(steps)
            names = [str(name) for name in inside] if isinstance(inside, dict) else []
            given = [name for name in names if key == name or key.startswith(f"{name}.")]
            step = max(given, key=len, default=key.partition(".")[0])
            steps += (int(step) if isinstance(inside, list) and step.isdecimal() else step,)
            key = key[len(step) + 1 :]
        return steps

    def _value(self, key: Sequence[str | int]) -> Any:
        """Return the file's value of a setting; None if the file has none."""
        data = self.document.data
        for step in key:
            try:
                data = data[step]
            except (KeyError, IndexError, TypeError):
                return None
        return data


def variables() -> dict[str, str]:
    """Return the environment variables that are settings, with their names in upper case, as pydantic finds them."""
    items = os.environ.items()  # noqa: TID251 - only this package may read the environment
    return {name.upper(): value for name, value in items if name.upper().startswith(PREFIX)}


def unknown_variables(model: type[BaseModel]) -> Iterator[str]:
    """Yield a sentence for each variable that is no setting of `model`, the class of all settings, but was meant as one.

    pydantic reports unknown options in sections that exist, and ignores all other variables. For a service named
    `dispatcher`, Kubernetes sets `DISPATCHER_SERVICE_HOST`, `DISPATCHER_PORT` and the like, which are no mistakes.
    """
    sections = list(model.model_fields)
    for name in variables():
        section, *rest = name.removeprefix(PREFIX).split("__")
        if section.lower() in sections:
            continue
        nearest = _with_two_underscores(name, model)
        if nearest is None and (close := difflib.get_close_matches(section.lower(), sections, n=1)):
            nearest = PREFIX + "__".join([close[0].upper(), *rest])
        hint = f"did you mean {nearest}?" if nearest else f"there are {', '.join(sections)}"
        yield f"{name}: no such setting; {hint}"
    for name in map(str.upper, os.environ):  # noqa: TID251 - only this package may read the environment
        if name.startswith("DISPATCHER_") and not name.startswith(PREFIX) and not _OF_KUBERNETES.fullmatch(name):
            nearest = _with_two_underscores(name, model)
            if nearest is not None:
                yield f"{name}: no such setting; did you mean {nearest}?"


def _with_two_underscores(name: str, model: type[BaseModel]) -> str | None:
    """Return the name with the underscores that it lacks: `DISPATCHER_HTTP_LISTEN` means `DISPATCHER__HTTP__LISTEN`.

    None if it begins with no section's name.
    """
    rest = name.removeprefix("DISPATCHER").lstrip("_")
    for setting, info in model.model_fields.items():
        section = setting.upper()
        if rest == section:
            return PREFIX + section
        if rest.startswith(f"{section}_") and model_in(info.annotation) is not None:
            return f"{PREFIX}{section}__{rest.removeprefix(section).lstrip('_')}"
    return None


def empty_sections(origin: Origin) -> Iterator[str]:
    """Yield a sentence for each section of the file without a value, which would be the same as no section at all."""
    data = origin.document.data or {}
    channels = data.get("channels")
    sections: dict[tuple[str, ...], Any] = {(name,): value for name, value in data.items()}
    if isinstance(channels, dict):
        sections |= {("channels", name): value for name, value in channels.items()}
    for key, value in sections.items():
        if value is None:
            yield f"{origin.place(key)}{'.'.join(key)}: nothing is in it: write {{}} for its defaults, or remove it"


def sentences(error: ValidationError, model: type[BaseModel], origin: Origin) -> Iterator[str]:
    """Yield a sentence for each mistake that pydantic found. `model`: the class of all settings."""
    for problem in error.errors(include_url=False, include_context=False):
        where = tuple(step for step in problem["loc"] if step != "[key]")
        message = message_of(problem)
        if problem["type"] == "extra_forbidden":
            message = f"unknown option; {option_hint(where, model)}"
        key = f"{'.'.join(map(str, where))}: " if where else ""
        yield f"{origin.place(where)}{key}{message}"
