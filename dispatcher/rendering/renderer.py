"""The Renderer: built-in templates, overridden file by file by an operator's folders."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from jinja2 import BaseLoader, Environment, FileSystemLoader, StrictUndefined, TemplateNotFound, TemplateSyntaxError
from jinja2 import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from channels.contract import Content
from dispatcher.decode.files import read_event_file
from dispatcher.errors import DispatcherError
from dispatcher.event import Event
from dispatcher.located import Malformed, Problem, parse
from dispatcher.phase import TERMINAL, Phase
from dispatcher.rendering import flyte, limits
from dispatcher.rendering.context import Context, Entity, Failure, context_of
from dispatcher.rendering.documents import BadDocument, Render, Variables, compile_document
from dispatcher.rendering.text import cut, cut_for_slack, escape_slack, one_line

log = structlog.get_logger(__name__)

DOCUMENTS = {"slack": "slack/message.yaml", "pagerduty": "pagerduty/event.yaml"}
MAIL_PARTS = {"subject": "email/subject.txt.j2", "text": "email/text.txt.j2", "html": "email/html.html.j2"}
CHANNELS = ("email", *DOCUMENTS)


class TemplateError(DispatcherError):
    """A template can't be used; the message names the file and what is wrong."""


def built_in_folder() -> Path:
    """Where the built-in templates are: inside the installed package, or beside it in the repository."""
    package = Path(__file__).parent.parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


class Renderer:
    """Makes a channel's message for an event: the same for sending and for preview."""

    def __init__(self, paths: Sequence[Path] = (), *, console_url: str = "") -> None:
        """`paths`: folders laid out as the built-in templates; the first that has a file wins.

        Raises TemplateError for a folder that isn't there.
        """
        for path in paths:
            if not path.is_dir():
                raise TemplateError(f"templates.path: no such folder: {path}")
        self._console_url = console_url
        self._latest: tuple[Event, Context] | None = None
        self._built_in = _Templates([built_in_folder()])
        self._chosen = _Templates([*paths, built_in_folder()]) if paths else self._built_in

    def render(self, channel: str, event: Event, *, template: str | None = None) -> Content:
        """The message. Where an operator's template fails, the built-in one is used, and the log says so.

        `template`: a launch plan's own mail template; it becomes the mail's HTML.
        """
        context = self._context(event)
        try:
            content = self._chosen.render(channel, context)
        except Exception as error:
            if self._chosen is self._built_in:
                raise
            log.error("a template failed: the built-in one is used instead", channel=channel, reason=_words(error))
            content = self._built_in.render(channel, context)
        if template is not None and channel == "email":
            html = flyte.substitute(template, context)
            content = {**content, "html": html, "text": flyte.as_text(html)}
        return content

    def _context(self, event: Event) -> Context:
        """What templates see of the event; the same for all of its messages, which are made one after another."""
        if self._latest is None or self._latest[0] is not event:
            self._latest = (event, context_of(event, self._console_url))
        return self._latest[1]

    def check(self) -> list[Problem]:
        """Try every template on a sample event of each phase: what is wrong, with file and line."""
        return [problem for channel in CHANNELS for problem in self._chosen.check(channel, self._console_url)]


def sample_event(phase: Phase) -> Event:
    """A realistic event of that terminal phase, for previews and checks."""
    return read_event_file(built_in_folder() / "samples" / f"{phase.lower()}.json")


class _Templates:
    """One set of folders, compiled once."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        loader = FileSystemLoader(folders)
        self._html = _environment(loader, autoescape=True)
        self._plain = _environment(loader)
        self._mrkdwn = _environment(loader, finalize=escape_slack)
        self._mrkdwn.filters["cut"] = cut_for_slack
        self._documents: dict[str, Render] = {}

    def render(self, channel: str, context: Context) -> Content:
        if channel == "email":
            return self._mail(context.variables())
        if channel not in DOCUMENTS:
            raise TemplateError(f"there are no templates for channel {channel!r}")
        rendered: Content = self._document(channel)(Variables(context.variables()))
        return rendered

    def check(self, channel: str, console_url: str) -> Iterator[Problem]:
        for phase in sorted(TERMINAL):
            try:
                content = self.render(channel, context_of(sample_event(phase), console_url))
            except (JinjaError, Malformed, BadDocument, TypeError, ValueError) as error:
                yield self._problem(channel, error)
                return
            yield from (
                Problem(self._file(DOCUMENTS.get(channel, MAIL_PARTS["html"])), 0, f"{phase.lower()}: {trouble}")
                for trouble in limits.lint(channel, content)
            )

    def _mail(self, variables: Mapping[str, Any]) -> Content:
        subject = self._plain.get_template(MAIL_PARTS["subject"]).render(variables)
        text = self._plain.get_template(MAIL_PARTS["text"]).render(variables)
        html = self._html.get_template(MAIL_PARTS["html"]).render(variables)
        return {
            "subject": cut(one_line(subject), limits.MAIL_SUBJECT),
            "text": cut(text, limits.MAIL_TEXT),
            "html": html,
        }

    def _document(self, channel: str) -> Render:
        if channel not in self._documents:
            file = self._file(DOCUMENTS[channel])
            (document,) = parse(file.read_text(encoding="utf-8"))
            choose = self._slack_leaf if channel == "slack" else self._pagerduty_leaf
            self._documents[channel] = compile_document(document, choose)
        return self._documents[channel]

    def _slack_leaf(self, path: tuple[str | int, ...], parent: Mapping[str, Any]) -> tuple[Environment, int]:
        if path[-1] in {"url", "color", "when"}:
            return self._plain, limits.SLACK_BUDGETS["url"]
        if path[-1] == "fallback" or parent.get("type") == "plain_text":
            return self._plain, limits.SLACK_BUDGETS["button" if "elements" in path else "header"]
        if len(path) == 1:
            return self._mrkdwn, limits.SLACK_TEXT
        return self._mrkdwn, limits.SLACK_BUDGETS["field" if "fields" in path or "elements" in path else "section"]

    def _pagerduty_leaf(self, path: tuple[str | int, ...], _: Mapping[str, Any]) -> tuple[Environment, int]:
        if path[-1] == "summary":
            return self._plain, limits.PAGERDUTY_SUMMARY
        return self._plain, limits.PAGERDUTY_DETAIL if "custom_details" in path else limits.PAGERDUTY_FIELD

    def _file(self, name: str) -> Path:
        return next((folder / name for folder in self._folders if (folder / name).is_file()), self._folders[-1] / name)

    def _problem(self, channel: str, error: Exception) -> Problem:
        """Where a template failed: by the syntax error's own line, or the deepest template frame of the traceback."""
        document = DOCUMENTS.get(channel)
        if isinstance(error, TemplateSyntaxError):
            return Problem(Path(error.filename or error.name or channel), error.lineno, error.message or "syntax error")
        if isinstance(error, TemplateNotFound):
            return Problem(self._file(str(error)), 0, "no such template")
        if isinstance(error, BadDocument | Malformed):
            return Problem(self._file(document or channel), error.line, str(error))
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
        if frames:
            return Problem(Path(frames[-1].filename), frames[-1].lineno or 0, _words(error))
        return Problem(self._file(document or MAIL_PARTS["html"]), 0, _words(error))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which spends most of its time on proving our own plain values harmless."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Entity | Failure):
            return not attr.startswith("_")
        return super().is_safe_attribute(obj, attr, value)


def _environment(loader: BaseLoader, **options: Any) -> Environment:
    environment = _Sandbox(
        loader=loader,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        **options,
    )
    environment.filters["cut"] = cut
    return environment


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
