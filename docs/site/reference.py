"""Generates the reference of commands and settings, as Markdown, from the code that reads them."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union

import typer.main
from pydantic import AnyUrl, BaseModel, IPvAnyNetwork, SecretStr
from pydantic.fields import FieldInfo

from dispatcher.cli import app
from dispatcher.config.mistakes import PREFIX
from dispatcher.config.settings import Settings
from dispatcher.holding.windows import Dates, TimeOfDay

_NAMES: Mapping[Any, str] = {
    str: "text",
    SecretStr: "secret",
    int: "number",
    float: "number",
    bool: "`true`, `false`",
    timedelta: "duration",
    datetime: "time",
    tzinfo: "time zone",
    TimeOfDay: "time of day",
    Dates: "dates",
    Path: "path",
    AnyUrl: "address",
    IPvAnyNetwork: "network",
}


def commands() -> str:
    """Every command with its arguments and options, with the texts of `--help`."""
    root = typer.main.get_command(app)
    return "\n".join(["# Commands", "", *_command(root, root.context_class(root, info_name="dispatcher"))])


def _command(command: Any, context: Any) -> Iterator[str]:
    """A command and its subcommands. `Any`: Typer includes a copy of click, and does not export its classes."""
    path = context.command_path
    if context.parent is not None:
        yield f"## {path}"
        yield ""
    yield inspect.cleandoc(command.help or "").replace("\n", " ")
    yield from ("", "```text", f"{' '.join([path, *command.collect_usage_pieces(context)])}", "```", "")
    yield from _parameters(command, context)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        subcommand = command.get_command(context, name)
        if not subcommand.hidden:
            yield from _command(subcommand, subcommand.context_class(subcommand, info_name=name, parent=context))


def _parameters(command: Any, context: Any) -> Iterator[str]:
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        name, help_ = record
        rows.append(f"| {_cell(f'`{name.strip()}`')} | {_cell(help_)} |")
    if rows:
        yield from ("| option or argument | meaning |", "|---|---|", *rows, "")


def settings() -> str:
    """Every option with its key, type, default and meaning."""
    lines = [
        "# Settings",
        "",
        "A section that is absent is switched off. Every key is also an environment variable, which takes precedence:",
        f"`kafka.bootstrap_servers` is `{PREFIX}KAFKA__BOOTSTRAP_SERVERS`.",
        "Durations are written `500ms`, `30s`, `5m`, `24h`, `7d`.",
        "",
    ]
    no_section = [(name, field) for name, field in Settings.model_fields.items() if _model(field.annotation) is None]
    for name, field in Settings.model_fields.items():
        model = _model(field.annotation)
        if model is not None:
            lines += [f"## {name}", "", *_about(model), *_section(f"{name}{_item_suffix(field.annotation)}", model)]
    lines += [
        "## Top level",
        "",
        *_table([_row(name, field, _meanings(Settings).get(name, "")) for name, field in no_section]),
    ]
    return "\n".join(lines)


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    rows, subsections = [], []
    for name, field in model.model_fields.items():
        key = f"{path}.{field.alias or name}"
        inner = _model(field.annotation)
        if inner is not None and inner.model_fields and "root" not in inner.model_fields:
            subsections.append((f"{key}{_item_suffix(field.annotation)}", inner))
            if _item_suffix(field.annotation) == "":
                continue
        rows.append(_row(key, field, _meanings(model).get(name, "")))
    yield from _table(rows)
    for key, inner in subsections:
        yield from (f"### {key}", "", *_about(inner), *_section(key, inner))


def _table(rows: list[str]) -> Iterator[str]:
    if rows:
        yield from ("| key | type | default | meaning |", "|---|---|---|---|", *rows, "")


def _row(key: str, field: FieldInfo, meaning: str) -> str:
    default = "**must be set**" if field.is_required() else _default(field.get_default(call_default_factory=True))
    return f"| `{key}` | {_cell(_type(field.annotation))} | {default} | {_cell(meaning or field.description or '')} |"


def _default(value: Any) -> str:
    match value:
        case None | "" | () | {}:
            return ""
        case timedelta():
            return f"`{_duration(value)}`"
        case bool():
            return f"`{str(value).lower()}`"
        case BaseModel():
            return ""
        case _:
            return f"`{_cell(', '.join(map(str, value)) if isinstance(value, tuple | list) else str(value))}`"


def _duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0 and seconds >= size:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _type(annotation: Any) -> str:
    """An option's type, named for operators."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in arguments if one is not types.NoneType))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (tuple, list, frozenset, set, Sequence):
        return f"list of {_type(arguments[0])}" if arguments else "list"
    if origin is not None:
        return f"mapping to {_type(arguments[-1])}" if arguments else "mapping"
    if annotation in _NAMES:
        return _NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (
            "options below"
            if "root" not in annotation.model_fields
            else _type(annotation.model_fields["root"].annotation)
        )
    return getattr(annotation, "__name__", str(annotation)).lower()


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `Model | None`, `list[Model]` or `Mapping[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model, typing.get_args(annotation))), None)


def _item_suffix(annotation: Any) -> str:
    """The suffix of a key for the items of a list (`[]`) or a mapping (`.*`)."""
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
    """The docstrings below a model's options, including those of its base classes."""
    meanings: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        if not issubclass(ancestor, BaseModel) or ancestor is BaseModel:
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        except (OSError, TypeError):  # created at run time: its base classes have the docstrings
            continue
        meanings |= _docstrings(definition)
    return meanings


def _docstrings(definition: ast.stmt) -> Iterator[tuple[str, str]]:
    """Each option's name and docstring."""
    for option, docstring in pairwise(getattr(definition, "body", ())):
        match option, docstring:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())
            case _:
                pass


def _cell(text: str) -> str:
    """Text for a table cell. Without backticks, `<` is escaped, so that Markdown does not take it for a tag."""
    flat = text.replace("|", "\\|").replace("\n", " ")
    return flat if "`" in flat else flat.replace("<", "&lt;")
