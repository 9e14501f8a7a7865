"""`dispatcher import`: a configuration of ours from flyteadmin's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dispatcher.config.import_flyteadmin import Inherited


def import_(
    file: Annotated[
        Path, typer.Argument(help="flyteadmin's configuration, or the ConfigMap or Helm values that hold it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the settings here, and templates beside it.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
) -> None:
    """Make settings from those of flyteadmin. Reads its notifications and cloudEvents sections. No secret is taken over."""
    from dispatcher.config.import_flyteadmin import SECTIONS, inherit
    from dispatcher.errors import SettingsError

    made = inherit(_read(file), file.name, with_templates=output is not None)
    if made is None:
        raise SettingsError(f"{file}: there is neither of flyteadmin's sections {' and '.join(SECTIONS)}")
    if output is None:
        typer.echo(made.text, nl=False)
        return
    try:
        _write(made, output, force=force)
    except OSError as error:
        raise SettingsError(f"{error.filename}: can't be written: {error.strerror}") from None
    typer.echo(f"{output} is written; what is left to you:", err=True)
    for words in made.left:
        typer.echo(f"  {words}", err=True)


def _read(file: Path) -> list[Any]:
    """The file's documents. Raises SettingsError where there are none to be read."""
    from dispatcher.errors import SettingsError
    from dispatcher.parsing.yaml import Malformed, parse

    try:
        documents = [document.data for document in parse(file.read_text(encoding="utf-8"))]
        mounted = [text for data in documents for text in _files_in(data) if text]
        return documents + [document.data for text in mounted for document in parse(text)]
    except Malformed as error:
        raise SettingsError(f"{file}:{error.line}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: can't be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None


def _files_in(data: Any) -> list[str]:
    """The files that a ConfigMap mounts, as `kubectl get configmap flyte-admin-base-config -o yaml` shows them."""
    if not isinstance(data, dict) or data.get("kind") != "ConfigMap" or not isinstance(data.get("data"), dict):
        return []
    return [text for text in data["data"].values() if isinstance(text, str)]


def _write(made: Inherited, output: Path, *, force: bool) -> None:
    from dispatcher.config.import_flyteadmin import TEMPLATES
    from dispatcher.errors import SettingsError

    files = {output: made.text} | {
        output.parent / TEMPLATES / name: content for name, content in made.templates.items()
    }
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        raise SettingsError(f"{', '.join(there)} is there already: choose another --output, or say --force")
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
