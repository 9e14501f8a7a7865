"""The Renderer: built-in templates, overridden file by file by an operator's folders."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import structlog
from jinja2 import Environment, FileSystemLoader, TemplateNotFound, TemplateSyntaxError
from jinja2.meta import find_referenced_templates

from channels.contract import Content
from dispatcher.errors import DispatcherError
from dispatcher.flyte.event_files import read_event_file
from dispatcher.model.event import Event
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.parsing.yaml import Malformed, Problem, parse
from dispatcher.rendering import flyte_template, limits
from dispatcher.rendering.change_event import change_event
from dispatcher.rendering.context import Context, context_of
from dispatcher.rendering.documents import BadDocument, Place, Sink, Variables, compile_document, strings_of
from dispatcher.rendering.mail_clients import unsupported
from dispatcher.rendering.sandbox import Meter, MeteredSandbox, Sandbox, Stopped
from dispatcher.rendering.styles import NotInlined, inline
from dispatcher.rendering.template_checks import undefined_names
from dispatcher.rendering.template_set import Override
from dispatcher.rendering.text import cut, cut_for_slack, cut_mrkdwn, escape_markdown, escape_slack, one_line

log = structlog.get_logger(__name__)

LONGEST_REASON = 600
TEST = "This is a test of the notifications: no execution has ended."
TEST_MARK = "TEST: "
"""What the name of what ran begins with in a test, so that every template marks it."""

DOCUMENTS = {
    "slack": "slack/message.yaml",
    "pagerduty": "pagerduty/event.yaml",
    "teams": "teams/card.yaml",
    "webhook": "webhook/body.yaml",
}
MAIL_PARTS = {"subject": "email/subject.txt.j2", "text": "email/text.txt.j2", "html": "email/html.html.j2"}
REST = 100
"""Messages for which a template is let alone after it was stopped: stopping it takes up to a second each time."""
STYLE_SHEET = "email/style.css"
CHANNELS = ("email", *DOCUMENTS)

Look = tuple[int, ...]
"""The overrides that hold for a message, by their place in the settings."""


Severity = Callable[[Event], str | None]
"""PagerDuty's severity for an event; None where its phase decides."""


def _by_phase(event: Event) -> str | None:
    del event
    return None


class TemplateError(DispatcherError):
    """A template can't be used; the message names the file and what is wrong."""


def built_in_folder() -> Path:
    """Where the built-in templates are: inside the installed package, or beside it in the repository."""
    package = Path(__file__).parent.parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


class Renderer:
    """Makes a channel's message for an event: the same for sending and for preview."""

    def __init__(
        self,
        paths: Sequence[Path] = (),
        *,
        overrides: Sequence[Override] = (),
        console_url: str = "",
        logs_url: str = "",
        severity: Severity = _by_phase,
        provided: Mapping[str, Path | None] | None = None,
        failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`paths`: folders laid out as the built-in templates. `overrides`: folders for some messages alone.

        `console_url`: Flyte's console. `logs_url`: where an execution's logs are, with `{project}`, `{domain}` and
        `{name}` in it. `severity`: PagerDuty's, where it isn't the phase's own.

        For each file of a message the first folder that has it wins: those of the overrides that hold, in
        their order, then `paths`, then the built-in ones. `provided`: channels of other packages, and the document
        template that each brings along; `NAME/message.yaml` in a folder goes before it. `failed`: told the channel of
        each message for which the built-in template had to stand in.

        Raises TemplateError for a folder that isn't there.
        """
        own = [(f"templates.match.{index}.path", path) for index, one in enumerate(overrides) for path in one.path]
        for option, path in [*own, *(("templates.path", path) for path in paths)]:
            if not path.is_dir():
                raise TemplateError(f"{option}: no such folder: {path}")
        self._paths = paths
        self._overrides = overrides
        self._console_url = console_url
        self._logs_url = logs_url
        self._severity = severity
        self._failed = failed
        self._turn = Lock()
        """Recording makes a conversation's end in the ledger's thread, beside the loop: each message is made whole."""
        self._latest: tuple[Event, Context] | None = None
        self._provided = provided or {}
        self._built_in = _Templates([built_in_folder()], self._provided, metered=False)
        self._sets: dict[Look, _Templates] = {}
        self._resting: dict[tuple[str, Look], int] = {}

    def look(self, event: Event, recipient: str = "") -> Look:
        """Which overrides hold. Messages of one event, channel and look are the same, whoever gets them."""
        return tuple([index for index, one in enumerate(self._overrides) if one.holds(event, recipient)])

    def render(
        self,
        channel: str,
        event: Event,
        *,
        recipient: str = "",
        template: str | None = None,
        undelivered: str = "",
        test: bool = False,
    ) -> Content:
        """The message to send, whatever the event says.

        Where an operator's template fails, or makes what the provider would refuse, the built-in one is
        used, and the log says so. `recipient`: any of those who get it, as the rule writes it. `template`: a
        launch plan's own mail template; it becomes the mail's HTML. `undelivered`: for fallback recipients,
        who could not be told, and why. `test`: it is marked as a test, in templates that know nothing of tests too.
        """
        with self._turn:
            context = self._context(event)
            if test:
                context = context._replace(test=TEST, what=f"{TEST_MARK}{context.what}")
            if undelivered:
                context = context._replace(undelivered=cut(one_line(undelivered), LONGEST_REASON))
            content = self._own(channel, context, self.look(event, recipient))
            content = self._with_own(template, channel, context, content or self._built_in.render(channel, context))
        return _addressed(channel, event, content)

    def change(self, event: Event) -> Content:
        """What tells of a launch plan's new version."""
        with self._turn:
            return change_event(self._context(event))

    def draft(self, channel: str, event: Event, *, recipient: str = "", template: str | None = None) -> Content:
        """The message as the operator's templates make it, even if the provider would refuse it.

        Raises TemplateError, with file and line, where a template fails.
        """
        context = self._context(event)
        chosen = self._templates(self.look(event, recipient))
        try:
            content = chosen.render(channel, context)
        except Exception as error:
            raise TemplateError(str(chosen.problem(channel, error))) from error
        return _addressed(channel, event, self._with_own(template, channel, context, content))

    def check(self) -> list[Problem]:
        """Read every template, and try it on sample events: what is wrong, with file and line.

        Each override's templates are tried as if it alone held.
        """
        sets = [self._templates(look) for look in ((), *((index,) for index in range(len(self._overrides))))]
        found = (
            problem
            for one in sets
            for channel in (*CHANNELS, *self._provided)
            for problem in one.check(channel, self._console_url)
        )
        return list(dict.fromkeys(found))

    def advice(self) -> list[Problem]:
        """What the operator's HTML templates use and mail programs don't support: no reason not to send."""
        folders = [*(path for one in self._overrides for path in one.path), *self._paths] or [built_in_folder()]
        files = dict.fromkeys(file for folder in folders for file in sorted(folder.glob("email/*")))
        return [
            Problem(file, line, message)
            for file in files
            if file.name.endswith((".html.j2", ".css"))
            for line, message in _advice(file)
        ]

    def _templates(self, look: Look) -> _Templates:
        folders = [path for index in look for path in self._overrides[index].path] + [*self._paths]
        if not folders:
            return self._built_in
        if look not in self._sets:
            self._sets[look] = _Templates([*folders, built_in_folder()], self._provided, metered=True)
        return self._sets[look]

    def _own(self, channel: str, context: Context, look: Look) -> Content | None:
        """The message by the operator's templates, where there are any and they make what can be sent."""
        chosen = self._templates(look)
        if chosen is self._built_in:
            return None
        if resting := self._resting.get((channel, look), 0):
            self._resting[channel, look] = resting - 1
            self._failed(channel)
            return None
        rest = 0
        try:
            content = chosen.render(channel, context)
            reason = "; ".join(limits.lint(channel, content))
        except Exception as error:  # noqa: BLE001 - an operator's template may raise anything; the message goes out
            reason = str(chosen.problem(channel, error))
            if isinstance(error, Stopped) or isinstance(error.__cause__, Stopped):
                self._resting[channel, look] = rest = REST
        if not reason:
            return content
        log.error(
            "a template failed: the built-in one is used instead",
            execution=_event(context),
            channel=channel,
            reason=reason,
            next_messages=rest,
        )
        self._failed(channel)
        return None

    def _with_own(self, template: str | None, channel: str, context: Context, content: Content) -> Content:
        """The mail with the launch plan's own HTML, if it brought any that can be sent."""
        if template is None or channel != "email":
            return content
        try:
            html = flyte_template.substitute(template, context, budget=limits.MAIL_HTML)
        except flyte_template.TooLarge:
            log.error(
                "a launch plan's own template is too large: the built-in one is used instead",
                execution=_event(context),
                what=context.what,
            )
            self._failed(channel)
            return content
        if not html.strip():
            return content
        return {**content, "html": html, "text": cut(flyte_template.as_text(html), limits.MAIL_TEXT) or content["text"]}

    def _context(self, event: Event) -> Context:
        """What templates see of the event; the same for all of its messages, which are made one after another."""
        if self._latest is None or self._latest[0] is not event:
            severity = self._severity(event)
            self._latest = (event, context_of(event, self._console_url, self._logs_url, severity=severity))
        return self._latest[1]


def _event(context: Context) -> str:
    """The key of the event that it tells of."""
    return f"{context.project}/{context.domain}/{context.name}/{context.phase.upper()}"


def _addressed(channel: str, event: Event, content: Content) -> Content:
    """A mail's content with what it is about, where that is known: List-Id and thread are made of it."""
    plan = event.launch_plan
    if channel != "email" or plan is None:
        return content
    return {**content, "about": {"project": plan.project, "domain": plan.domain, "launch_plan": plan.name}}


def sample_event(phase: Phase) -> Event:
    """A realistic event of that terminal phase, for previews and checks."""
    return read_event_file(built_in_folder() / "samples" / f"{phase.lower()}.json")


class _Loader(FileSystemLoader):
    """Templates from folders, those of HTML mail with their style sheet inlined."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        source, file, uptodate = super().get_source(environment, template)
        if template.startswith("email/") and template.endswith(".html.j2"):
            with suppress(NotInlined):  # the lint tells
                source = inline(source, super().get_source(environment, STYLE_SHEET)[0])
        return source, file, uptodate


class _Templates:
    """One set of folders, compiled once."""

    def __init__(self, folders: Sequence[Path], provided: Mapping[str, Path | None], *, metered: bool) -> None:
        self._folders = folders
        self._provided = provided
        self._loader = _Loader(folders)
        self._meter = Meter() if metered else None
        self._html = self._sandbox(autoescape=True)
        self._plain = self._sandbox()
        self._mrkdwn = self._sandbox(finalize=escape_slack)
        self._mrkdwn.add_filter("cut", cut_for_slack)
        self._markdown = self._sandbox(finalize=escape_markdown)
        self._documents: dict[str, Callable[[Variables], Content]] = {}

    def render(self, channel: str, context: Context) -> Content:
        """Raises whatever a template raises; Stopped where a metered one goes past its limits."""
        if self._meter is not None:
            self._meter.fill()
        if channel == "email":
            return self._mail(context.variables())
        return self._document(channel)(Variables(context.variables()))

    def check(self, channel: str, console_url: str) -> list[Problem]:
        """What reading finds, else what trying finds."""
        if self._meter is not None:
            self._meter.fill()
        try:
            found = list(self._read_mail() if channel == "email" else self._read_document(channel))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an operator's file is what was asked for
            return [self.problem(channel, error)]
        return found or list(self._try(channel, console_url))

    def problem(self, channel: str, error: Exception) -> Problem:
        """Where a template failed: by the error's own line, or the deepest template in the traceback."""
        file = self._main_file(channel)
        if isinstance(error, TemplateSyntaxError):
            return Problem(Path(error.filename or file), error.lineno, error.message or "syntax error")
        if isinstance(error, TemplateNotFound):
            return Problem(self._file(str(error)), 0, "no such template")
        if isinstance(error, BadDocument | Malformed):
            return Problem(file, error.line, str(error))
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
        place = (Path(frames[-1].filename), frames[-1].lineno or 0) if frames else (file, 0)
        return Problem(*place, str(error) or type(error).__name__)

    def _read_mail(self) -> Iterator[Problem]:
        waiting, seen = [*MAIL_PARTS.values()], set()
        while waiting:
            name = waiting.pop(0)
            if name in seen:
                continue
            seen.add(name)
            try:
                source, file, _ = FileSystemLoader.get_source(self._loader, self._plain, name)
                tree = self._plain.parse(source, name, file)
                self._plain.get_template(name)
            except TemplateNotFound:
                continue  # trying tells whether it is needed
            except TemplateSyntaxError as error:
                yield self.problem("email", error)
                continue
            waiting += [other for other in find_referenced_templates(tree) if other is not None]
            yield from (Problem(Path(file), line, message) for line, message in undefined_names(tree, self._plain))

    def _read_document(self, channel: str) -> Iterator[Problem]:
        self._document(channel)
        file = self._main_file(channel)
        (document,) = parse(file.read_text(encoding="utf-8"))
        for path, source in strings_of(document.data):
            for _, message in undefined_names(self._plain.parse(source), self._plain):
                yield Problem(file, document.line_of(path), message)

    def _try(self, channel: str, console_url: str) -> Iterator[Problem]:
        seen = set()
        for kind, event in _trials():
            try:
                content = self.render(channel, context_of(event, console_url))
                file = self._main_file(channel)
                problems = [Problem(file, 0, trouble) for trouble in limits.lint(channel, content)]
            except Exception as error:  # noqa: BLE001 - as above
                problems = [self.problem(channel, error)]
            for problem in problems:
                if problem not in seen:
                    seen.add(problem)
                    yield Problem(problem.file, problem.line, f"{problem.message} ({kind})")

    def _mail(self, variables: Mapping[str, Any]) -> Content:
        known = {**self._plain.globals, **variables}
        subject = self._part("subject", self._plain, known)
        text = self._part("text", self._plain, known)
        html = self._part("html", self._html, known)
        return {
            "subject": cut(one_line(subject), limits.MAIL_SUBJECT),
            "text": cut(text, limits.MAIL_TEXT),
            "html": html,
        }

    def _part(self, part: str, environment: Environment, known: dict[str, Any]) -> str:
        """What `Template.render` makes, without its copies of all that the template knows."""
        template = environment.get_template(MAIL_PARTS[part])
        context = environment.context_class(environment, known, template.name, template.blocks)
        try:
            return "".join(template.root_render_func(context))
        except Exception:  # noqa: BLE001 - Jinja raises it again, with the template's own lines in the traceback
            environment.handle_exception()

    def _document(self, channel: str) -> Callable[[Variables], Content]:
        if channel not in DOCUMENTS and channel not in self._provided:
            channel = "webhook"
        if channel not in self._documents:
            documents = parse(self._main_file(channel).read_text(encoding="utf-8"))
            if len(documents) != 1:
                raise BadDocument("one YAML document was expected", 1)
            sinks = {"slack": self._slack_sink, "pagerduty": self._pagerduty_sink, "teams": self._teams_sink}
            self._documents[channel] = compile_document(documents[0], sinks.get(channel, self._json_sink))
        return self._documents[channel]

    def _slack_sink(self, path: Place, parent: Mapping[str, Any]) -> Sink:
        if path[-1] in {"url", "color", "when"}:
            return Sink(self._plain, cut, limits.SLACK_BUDGETS["url"])
        if path[-1] == "fallback" or parent.get("type") == "plain_text":
            return Sink(self._plain, cut, limits.SLACK_BUDGETS["button" if "elements" in path else "header"])
        if len(path) == 1:
            return Sink(self._mrkdwn, cut_mrkdwn, limits.SLACK_TEXT)
        kind = "field" if "fields" in path or "elements" in path else "section"
        return Sink(self._mrkdwn, cut_mrkdwn, limits.SLACK_BUDGETS[kind])

    def _pagerduty_sink(self, path: Place, _: Mapping[str, Any]) -> Sink:
        if path[-1] == "summary":
            return Sink(self._plain, cut, limits.PAGERDUTY_SUMMARY)
        if path[-1] in {"href", "src", "client_url"}:
            return Sink(self._plain, cut, limits.PAGERDUTY_URL)
        return Sink(self._plain, cut, limits.PAGERDUTY_DETAIL if "custom_details" in path else limits.PAGERDUTY_FIELD)

    def _teams_sink(self, path: Place, parent: Mapping[str, Any]) -> Sink:
        if path[-1] == "url":
            return Sink(self._plain, cut, limits.TEAMS_URL)
        if parent.get("type") == "TextBlock" or "facts" in path:
            return Sink(self._markdown, cut, limits.TEAMS_TEXT)
        return Sink(self._plain, cut, limits.TEAMS_TEXT)

    def _json_sink(self, _path: Place, _parent: Mapping[str, Any]) -> Sink:
        return Sink(self._plain, cut, limits.WEBHOOK_TEXT)

    def _sandbox(self, **options: Any) -> Sandbox:
        if self._meter is None:
            return Sandbox(self._loader, cache_size=-1, **options)  # these few are kept without counting who used which
        return MeteredSandbox(self._loader, self._meter, **options)

    def _main_file(self, channel: str) -> Path:
        """A channel's document, or the mail's HTML. A channel that we don't know gets the webhooks'."""
        if channel == "email":
            return self._file(MAIL_PARTS["html"])
        if channel not in self._provided:
            return self._file(DOCUMENTS.get(channel, DOCUMENTS["webhook"]))
        own = self._file(f"{channel}/message.yaml")
        return own if own.is_file() else self._provided[channel] or self._file(DOCUMENTS["webhook"])

    def _file(self, name: str) -> Path:
        return next((folder / name for folder in self._folders if (folder / name).is_file()), self._folders[-1] / name)


def _advice(file: Path) -> Iterator[tuple[int, str]]:
    source = file.read_text(encoding="utf-8", errors="replace")
    yield from sorted(unsupported(source))
    sheet = next(folder for folder in (file.parent.parent, built_in_folder()) if (folder / STYLE_SHEET).is_file())
    if file.name.endswith(".html.j2"):
        try:
            inline(source, (sheet / STYLE_SHEET).read_text(encoding="utf-8"))
        except NotInlined as error:
            yield 0, str(error)


def _trials() -> Iterator[tuple[str, Event]]:
    """An event of each phase, and one that says no more than it must."""
    for phase in sorted(TERMINAL):
        yield phase, sample_event(phase)
    full = sample_event(Phase.FAILED)
    yield "an event without details", Event(execution=full.execution, phase=full.phase, occurred_at=full.occurred_at)
