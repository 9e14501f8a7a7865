"""Finds the problems of templates before a message is sent: in their text, with sample events, and for mail programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dispatcher.parsing.yaml import Problem
from dispatcher.rendering.compiled import STYLE_SHEET, CompiledTemplates, TemplateError
from dispatcher.rendering.context import Context
from dispatcher.rendering.folders import Templates, built_in_folder
from dispatcher.rendering.mail_clients import unsupported
from dispatcher.rendering.styles import NotInlined, inline
from dispatcher.rendering.template_process import IsolatedTemplates


def template_problems(
    compiled: CompiledTemplates | IsolatedTemplates, templates: Templates, samples: Iterable[tuple[str, Context]]
) -> Iterator[Problem]:
    """Yield the problems that are found when a channel's templates are parsed. If there are none, yield the problems
    that are found when the samples are rendered, which are labels and variables.
    """
    problems = compiled.parse(templates)
    yield from problems
    seen = set(problems)
    for label, context in samples if not problems else ():
        try:
            content = compiled.render(templates, context)
            file = compiled.folders.main_file(templates)
            problems = [Problem(file, 0, problem) for problem in templates.form.problems(content)]
        except TemplateError as error:
            problems = [error.problem]
        for problem in problems:
            if problem not in seen:
                seen.add(problem)
                yield Problem(problem.file, problem.line, f"{problem.message} ({label})")


def mail_client_problems(folders: Iterable[Path]) -> Iterator[Problem]:
    """Yield the HTML and CSS in mail templates that mail programs don't support. Such mails are sent nevertheless."""
    for file in dict.fromkeys(file for folder in folders for file in sorted(folder.glob("email/*"))):
        if file.name.endswith((".html.j2", ".css")):
            source = file.read_text(encoding="utf-8", errors="replace")
            yield from (Problem(file, line, message) for line, message in sorted(unsupported(source)))
            if (reason := _not_inlined(file, source)) is not None:
                yield Problem(file, 0, reason)


def _not_inlined(file: Path, source: str) -> str | None:
    """Return why the style sheet can't be written into the template's tags."""
    folders = (file.parent.parent, built_in_folder())
    sheet = next(folder / STYLE_SHEET for folder in folders if (folder / STYLE_SHEET).is_file())
    try:
        if file.name.endswith(".html.j2"):
            inline(source, sheet.read_text(encoding="utf-8"))
    except NotInlined as error:
        return str(error)
    return None
