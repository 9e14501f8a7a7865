"""Compiles the templates of some folders, and renders messages with them, in the process that calls it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound, TemplateSyntaxError
from jinja2.meta import find_referenced_templates
from jinja2.sandbox import ImmutableSandboxedEnvironment

from channels.common.text import cut
from channels.contract import Content, MailLimits, Markup
from dispatcher.errors import DispatcherError
from dispatcher.parsing.yaml import Malformed, Problem, parse
from dispatcher.rendering.context import Context
from dispatcher.rendering.documents import BadDocument, Place, Sink, Variables, compile_document, strings_of
from dispatcher.rendering.folders import OutsideFolder, TemplateFolders, Templates
from dispatcher.rendering.styles import NotInlined, inline
from dispatcher.rendering.text import one_line
from dispatcher.rendering.undefined_names import undefined_names

STYLE_SHEET = "email/style.css"
OUT_OF_MEMORY = "stopped because it needs too much memory: it loops too long, or makes too much"


class TemplateError(DispatcherError):
    """A template can't be compiled or rendered. `problem` has the file, the line and the reason.

    `stopped`: true if the template exceeded a limit of time or memory.
    """

    def __init__(self, problem: Problem, *, stopped: bool = False) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.stopped = stopped


class _Escaped(str):
    """Text that is escaped already, so that it is not escaped again."""

    __slots__ = ()


class CompiledTemplates:
    """The templates found in some folders, each compiled once."""

    def __init__(
        self,
        folders: TemplateFolders,
        on_load: Callable[[Path], None] = lambda _: None,
        environment: type[Environment] = ImmutableSandboxedEnvironment,
    ) -> None:
        """`on_load`: called with each template file before it is compiled. `environment`: Jinja's environment. The
        sandbox keeps templates away from files and from Python's internals; only the built-in templates do without it.
        """
        self.folders = folders
        self._environment_type = environment
        self._on_load = on_load
        self._last_loaded: Path | None = None
        """The file that was compiled last during the current call of a method."""
        self._loader = _Loader(folders, self._loading)
        self._html = self._environment(autoescape=True)
        self._plain = self._environment()
        self._environments: dict[Markup, Environment] = {}
        self._documents: dict[tuple[str, bool], Callable[[Variables], Content]] = {}

    def render(self, templates: Templates, context: Context) -> Content:
        """Render a channel's message. Raises TemplateError."""
        self._last_loaded = None
        try:
            if templates.form.mail is not None:
                return self._mail(context.variables(), templates.parts, templates.form.mail)
            return self._document(templates)(Variables(context.variables()))
        except Exception as error:
            raise TemplateError(self._problem(templates, error), stopped=_out_of_memory(error)) from error

    def parse(self, templates: Templates) -> list[Problem]:
        """Parse a channel's templates, and return the problems."""
        self._last_loaded = None
        try:
            mail = templates.form.mail is not None
            return list(self._parse_mail(templates) if mail else self._parse_document(templates))
        except Exception as error:  # noqa: BLE001 - a template may raise any exception, which is reported here
            return [self._problem(templates, error)]

    def _environment(self, **options: Any) -> Environment:
        environment = self._environment_type(
            loader=self._loader,
            undefined=StrictUndefined,  # an unknown name is an error
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            **options,
        )
        environment.filters["cut"] = cut
        return environment

    def _loading(self, file: Path) -> None:
        self._last_loaded = file
        self._on_load(file)

    def _problem(self, templates: Templates, error: Exception) -> Problem:
        """Turn a template's error into a problem. File and line come from the error or from its traceback."""
        file = self._last_loaded or self.folders.main_file(templates)
        if isinstance(error, TemplateSyntaxError):
            return Problem(Path(error.filename or file), error.lineno, error.message or "syntax error")
        if isinstance(error, TemplateNotFound):
            return Problem(self.folders.path(str(error)), 0, "no such template")
        if isinstance(error, BadDocument | Malformed):
            return Problem(file, error.line, OUT_OF_MEMORY if _out_of_memory(error) else str(error))
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
        place = (Path(frames[-1].filename), frames[-1].lineno or 0) if frames else (file, 0)
        if _out_of_memory(error):
            return Problem(*place, OUT_OF_MEMORY)
        if isinstance(error, RecursionError):
            return Problem(*place, "it is nested too deeply: does it include or call itself?")
        return Problem(*place, str(error) or type(error).__name__)

    def _parse_mail(self, templates: Templates) -> Iterator[Problem]:
        queue, seen = [*templates.parts.values()], set()
        while queue:
            name = queue.pop(0)
            if name in seen:
                continue
            seen.add(name)
            try:
                source, file = self.folders.read(name)
                self._loading(file)
                tree = self._plain.parse(source, name, str(file))
                self._plain.get_template(name)
            except TemplateNotFound:
                continue  # not reported here: rendering reports a missing file, unless the file is optional
            except (TemplateSyntaxError, OutsideFolder) as error:
                yield self._problem(templates, error)
                continue
            queue += [other for other in find_referenced_templates(tree) if other is not None]
            yield from (Problem(file, line, message) for line, message in undefined_names(tree, self._plain))

    def _parse_document(self, templates: Templates) -> Iterator[Problem]:
        self._document(templates)
        source, file = self.folders.read_document(templates)
        (document,) = parse(source)
        for place, text, items in strings_of(document.data):
            for _, message in undefined_names(self._plain.parse(text), self._plain, items):
                yield Problem(file, document.line_of(place), message)

    def _mail(self, variables: Mapping[str, Any], parts: Mapping[str, str], limits: MailLimits) -> Content:
        subject = self._plain.get_template(parts["subject"]).render(variables)
        text = self._plain.get_template(parts["text"]).render(variables)
        html = self._html.get_template(parts["html"]).render(variables)
        return {
            "subject": cut(one_line(subject), limits.subject),
            "text": cut(text, limits.text),
            "html": html,
        }

    def _document(self, templates: Templates) -> Callable[[Variables], Content]:
        key = templates.channel, templates.summary
        if key not in self._documents:
            source, file = self.folders.read_document(templates)
            self._loading(file)
            documents = parse(source)
            if len(documents) != 1:
                raise BadDocument("one YAML document was expected", 1)

            def sink(place: Place, parent: Mapping[str, Any]) -> Sink:
                limit, markup = templates.form.text_kind(place, parent)
                whole = (markup.cut if markup is not None else None) or cut
                return Sink(self._for_markup(markup), whole, limit)

            self._documents[key] = compile_document(documents[0], sink)
        return self._documents[key]

    def _for_markup(self, markup: Markup | None) -> Environment:
        """Return the environment that escapes values for a markup language."""
        if markup is None:
            return self._plain
        if markup not in self._environments:
            environment = self._environment(finalize=partial(_escape, markup))
            if markup.cut is not None:
                environment.filters["cut"] = partial(_escape_and_cut, markup, markup.cut)
            self._environments[markup] = environment
        return self._environments[markup]


def _escape(markup: Markup, value: object) -> str:
    """Escape a value, unless it is escaped already."""
    return value if isinstance(value, _Escaped) else markup.escape(value)


def _escape_and_cut(markup: Markup, cut_markup: Callable[[str, int], str], value: object, limit: int) -> str:
    """Escape a value and then cut it, in this order, because the provider's limit applies to the escaped text."""
    return _Escaped(cut_markup(_escape(markup, value), limit))


def _out_of_memory(error: BaseException | None) -> bool:
    """True if the error, or an error that caused it, is a MemoryError."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


class _Loader(BaseLoader):
    """Loads templates from folders. In HTML templates of mail, it writes the style sheet's rules into the tags."""

    def __init__(self, folders: TemplateFolders, on_load: Callable[[Path], None]) -> None:
        self._folders = folders
        self._on_load = on_load

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        del environment
        source, file = self._folders.read(template)
        self._on_load(file)
        if template.startswith("email/") and template.endswith(".html.j2"):
            with suppress(NotInlined):  # the template is used as it is; mail_client_problems() reports the error
                source = inline(source, self._folders.read(STYLE_SHEET)[0])
        return source, str(file), lambda: True
