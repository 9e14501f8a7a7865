"""The reference of commands and settings, as Markdown, from the code that reads them."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union

import typer.main
from pydantic import AnyUrl, BaseModel, IPvAnyNetwork, SecretStr
from pydantic.fields import FieldInfo

from dispatcher.cli import app
from dispatcher.config.settings import PREFIX, Settings

_NAMES: Mapping[Any, str] = {
    str: "text",
    SecretStr: "secret",
    int: "number",
    float: "number",
    bool: "`true`, `false`",
    timedelta: "span",
    Path: "path",
    AnyUrl: "address",
    IPvAnyNetwork: "network",
}


def commands() -> str:
    """Every command with its arguments and options, as `--help` tells them."""
    root = typer.main.get_command(app)
    return "\n".join(["# Commands", "", *_command(root, root.context_class(root, info_name="dispatcher"))])


def _command(command: Any, context: Any) -> Iterator[str]:
    """A command and those below it. Typer brings a click of its own, whose classes it doesn't export."""
    path = context.command_path
    if context.parent is not None:
        yield f"## {path}"
        yield ""
    yield inspect.cleandoc(command.help or "").replace("\n", " ")
    yield from ("", "```text", f"{' '.join([path, *command.collect_usage_pieces(context)])}", "```", "")
    yield from _parameters(command, context)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        below = command.get_command(context, name)
        if not below.hidden:
            yield from _command(below, below.context_class(below, info_name=name, parent=context))


def _parameters(command: Any, context: Any) -> Iterator[str]:
    rows = []
    for one in command.get_params(context):
        shown = one.get_help_record(context)
        if shown is None:
            continue
        name, help_ = shown
        rows.append(f"| {_cell(f'`{name.strip()}`')} | {_cell(help_)} |")
    if rows:
        yield from ("| option or argument | meaning |", "|---|---|", *rows, "")


def settings() -> str:
    """Every option: its key, what it takes, its default, what it means, and its variable."""
    lines = [
        "# Settings",
        "",
        "A section that is absent is switched off. Each option is also an environment variable, which wins:",
        f"`kafka.bootstrap_servers` is `{PREFIX}KAFKA__BOOTSTRAP_SERVERS`.",
        "",
    ]
    alone = [(name, field) for name, field in Settings.model_fields.items() if _model(field.annotation) is None]
    for name, field in Settings.model_fields.items():
        model = _model(field.annotation)
        if model is not None:
            lines += [f"## {name}", "", *_about(model), *_section(name, model)]
    lines += [
        "## At the top",
        "",
        *_table([_row(name, field, _meanings(Settings).get(name, "")) for name, field in alone]),
    ]
    return "\n".join(lines)


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    rows, below = [], []
    for name, field in model.model_fields.items():
        key = f"{path}.{field.alias or name}"
        inner = _model(field.annotation)
        if inner is not None and inner.model_fields and "root" not in inner.model_fields:
            below.append((f"{key}{_kind_of_many(field.annotation)}", inner))
            if _kind_of_many(field.annotation) == "":
                continue
        rows.append(_row(key, field, _meanings(model).get(name, "")))
    yield from _table(rows)
    for key, inner in below:
        yield from (f"### {key}", "", *_about(inner), *_section(key, inner))


def _table(rows: list[str]) -> Iterator[str]:
    if rows:
        yield from ("| key | takes | default | meaning |", "|---|---|---|---|", *rows, "")


def _row(key: str, field: FieldInfo, meaning: str) -> str:
    default = "**must be set**" if field.is_required() else _shown(field.get_default(call_default_factory=True))
    return f"| `{key}` | {_cell(_takes(field.annotation))} | {default} | {_cell(meaning or field.description or '')} |"


def _shown(value: Any) -> str:
    match value:
        case None | "" | () | {}:
            return ""
        case timedelta():
            return f"`{_span(value)}`"
        case bool():
            return f"`{str(value).lower()}`"
        case BaseModel():
            return ""
        case _:
            return f"`{_cell(', '.join(map(str, value)) if isinstance(value, tuple | list) else str(value))}`"


def _span(value: timedelta) -> str:
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0 and seconds >= size:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _takes(annotation: Any) -> str:
    """A type, in an operator's words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _takes(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_takes(one) for one in arguments if one is not types.NoneType))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (tuple, list, frozenset, set, Sequence):
        return f"list of {_takes(arguments[0])}" if arguments else "list"
    if origin is not None:
        return f"mapping to {_takes(arguments[-1])}" if arguments else "mapping"
    if annotation in _NAMES:
        return _NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (
            "options below"
            if "root" not in annotation.model_fields
            else _takes(annotation.model_fields["root"].annotation)
        )
    return getattr(annotation, "__name__", str(annotation)).lower()


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Model | None`, a list or a mapping of it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model, typing.get_args(annotation))), None)


def _kind_of_many(annotation: Any) -> str:
    """How the keys of one in a list or a mapping are written."""
    text = str(annotation)
    return (
        "[]"
        if "tuple[" in text or "list[" in text or "Sequence[" in text
        else ".*"
        if "apping[" in text or "dict[" in text
        else ""
    )


def _about(model: type[BaseModel]) -> list[str]:
    return [inspect.cleandoc(model.__doc__), ""] if model.__doc__ and "__doc__" in vars(model) else []


@cache
def _meanings(model: type[BaseModel]) -> Mapping[str, str]:
    """The docstrings under a model's options, its ancestors' included."""
    found: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        if not issubclass(ancestor, BaseModel) or ancestor is BaseModel:
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        except (OSError, TypeError):  # made at run time; its ancestors have the words
            continue
        found |= _docstrings(definition)
    return found


def _docstrings(definition: ast.stmt) -> Iterator[tuple[str, str]]:
    for option, after in pairwise(getattr(definition, "body", ())):
        match option, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                yield name, " ".join(words.split())
            case _:
                pass


def _cell(text: str) -> str:
    """Text for a table's cell; where nothing in it is code, its angle brackets are no tags."""
    flat = text.replace("|", "\\|").replace("\n", " ")
    return flat if "`" in flat else flat.replace("<", "&lt;")
