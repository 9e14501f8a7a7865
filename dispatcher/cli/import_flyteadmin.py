"""`dispatcher import-flyteadmin`: generates settings from flyteadmin's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._input import STDIN, name_of, opened
from dispatcher.cli._options import AsJson
from dispatcher.cli._output import write_json, write_line, write_text

if TYPE_CHECKING:
    from dispatcher.config.import_flyteadmin import ImportedConfig


def import_flyteadmin(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="flyteadmin's configuration, or a ConfigMap or Helm values that contain it; - is standard input.",
            dir_okay=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the settings to this file, and templates to a folder next to it. By default, print the settings.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Generate settings from flyteadmin's configuration. Reads the sections notifications and cloudEvents. Secrets are
    not copied. Comments mark the settings that you must complete.
    """
    from dispatcher.config.import_flyteadmin import SECTIONS, import_config
    from dispatcher.errors import SettingsError

    origin = name_of(file) if file == STDIN else file.name
    imported = import_config(_read(file), origin, template_problems=_template_problems if output else None)
    if imported is None:
        raise SettingsError(f"{name_of(file)}: there is neither of flyteadmin's sections {' and '.join(SECTIONS)}")
    try:
        written = _write(imported, output, force=force) if output is not None else []
    except OSError as error:
        raise SettingsError(f"{error.filename}: can't be written: {error.strerror}") from None
    if as_json:
        write_json({"settings": imported.text, "files": written, "to_do": imported.to_do})
        return
    if output is None:
        write_text(imported.text)
        return
    write_line(f"{output} is written; left for you to do:", err=True)
    for task in imported.to_do:
        write_line(f"  {task}", err=True)


def _read(file: Path) -> list[Any]:
    """Return the file's YAML documents. If a document is a ConfigMap, also return the YAML documents that it contains.

    Raises SettingsError if the file is not valid YAML, and BadParameter if it can't be read.
    """
    from dispatcher.errors import SettingsError
    from dispatcher.parsing.yaml import Malformed, Problem, parse, read_text

    try:
        with opened(file) as content:
            documents = [document.data for document in parse(read_text(content))]
        embedded = [text for data in documents for text in _configmap_files(data) if text]
        return documents + [document.data for text in embedded for document in parse(text)]
    except Malformed as error:
        raise SettingsError(str(Problem(Path(name_of(file)), error.line, str(error)))) from None


def _template_problems(files: Mapping[str, str]) -> list[str]:
    """Return the problems of template files, as `dispatcher check` finds them."""
    from tempfile import TemporaryDirectory

    from channels.registry import CHANNEL_TYPES
    from dispatcher.rendering.renderer import Renderer

    with TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return [problem.message for problem in Renderer(CHANNEL_TYPES, [Path(folder)]).check()]


def _configmap_files(data: Any) -> list[str]:
    """Return the contents of the files in a ConfigMap. The list is empty if `data` is not a ConfigMap."""
    if not isinstance(data, dict) or data.get("kind") != "ConfigMap" or not isinstance(data.get("data"), dict):
        return []
    return [text for text in data["data"].values() if isinstance(text, str)]


def _write(imported: ImportedConfig, output: Path, *, force: bool) -> list[str]:
    """Write the settings and the templates. Returns the files. Raises OSError, and SettingsError if one exists."""
    from dispatcher.config.import_flyteadmin import TEMPLATES
    from dispatcher.errors import SettingsError

    files = {output: imported.text} | {
        output.parent / TEMPLATES / name: content for name, content in imported.templates.items()
    }
    existing = [str(path) for path in files if path.exists()]
    if existing and not force:
        raise SettingsError(f"{', '.join(existing)} is there already: choose another --output, or say --force")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return [*map(str, files)]
