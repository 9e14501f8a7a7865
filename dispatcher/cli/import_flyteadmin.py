"""`dispatcher import-flyteadmin`: generates settings from flyteadmin's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._output import write_line, write_text

if TYPE_CHECKING:
    from dispatcher.config.import_flyteadmin import ImportedConfig


def import_flyteadmin(
    file: Annotated[
        Path, typer.Argument(help="flyteadmin's configuration, or a ConfigMap or Helm values that contain it.")
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
) -> None:
    """Generate settings from flyteadmin's configuration. Reads the sections notifications and cloudEvents. Secrets are
    not copied. Comments mark the settings that you must complete.
    """
    from dispatcher.config.import_flyteadmin import SECTIONS, import_config
    from dispatcher.errors import SettingsError

    imported = import_config(_read(file), file.name, template_problems=_template_problems if output else None)
    if imported is None:
        raise SettingsError(f"{file}: there is neither of flyteadmin's sections {' and '.join(SECTIONS)}")
    if output is None:
        write_text(imported.text)
        return
    try:
        _write(imported, output, force=force)
    except OSError as error:
        raise SettingsError(f"{error.filename}: can't be written: {error.strerror}") from None
    write_line(f"{output} is written; left for you to do:", err=True)
    for task in imported.to_do:
        write_line(f"  {task}", err=True)


def _read(file: Path) -> list[Any]:
    """Return the file's YAML documents. If a document is a ConfigMap, also return the YAML documents that it contains.

    Raises SettingsError if the file cannot be read or is not valid YAML.
    """
    from dispatcher.errors import SettingsError
    from dispatcher.parsing.yaml import Malformed, Problem, parse, read_text

    try:
        documents = [document.data for document in parse(read_text(file))]
        embedded = [text for data in documents for text in _configmap_files(data) if text]
        return documents + [document.data for text in embedded for document in parse(text)]
    except Malformed as error:
        raise SettingsError(str(Problem(file, error.line, str(error)))) from None
    except OSError as error:
        raise SettingsError(f"{file}: can't be read: {error.strerror}") from None


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


def _write(imported: ImportedConfig, output: Path, *, force: bool) -> None:
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
