"""The Renderer, which fills in the built-in templates, or an operator's template files that replace them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from dispatcher.model.event import Event, shortened
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.parsing.yaml import Malformed, Problem, parse, read_text
from dispatcher.rendering import flyte_template, limits
from dispatcher.rendering.change_event import change_event
from dispatcher.rendering.context import PROPELLER_LABELS, Context, context_of
from dispatcher.rendering.documents import BadDocument, Place, Sink, Variables, compile_document, strings_of
from dispatcher.rendering.mail_clients import unsupported
from dispatcher.rendering.sandbox import Meter, MeteredSandbox, Sandbox, Stopped
from dispatcher.rendering.styles import NotInlined, inline
from dispatcher.rendering.template_checks import undefined_names
from dispatcher.rendering.template_set import TemplateSet
from dispatcher.rendering.text import cut, cut_for_slack, cut_mrkdwn, escape_markdown, escape_slack, one_line

log = structlog.get_logger(__name__)

LONGEST_REASON = 600
TEST = "This is a test notification: no execution has finished."
TEST_MARK = "TEST: "
"""Prefix of the variable `what` in a test notification. So even a template that doesn't use the variable `test` shows
that the message is a test."""

DOCUMENTS = {
    "slack": "slack/message.yaml",
    "pagerduty": "pagerduty/event.yaml",
    "teams": "teams/card.yaml",
    "webhook": "webhook/body.yaml",
}
MAIL_PARTS = {"subject": "email/subject.txt.j2", "text": "email/text.txt.j2", "html": "email/html.html.j2"}
SKIP_AFTER_STOP = 100
"""After a custom template exceeded a limit, this many messages use the built-in template without trying the custom
template, because each try takes up to a second."""
STYLE_SHEET = "email/style.css"
CHANNELS = ("email", *DOCUMENTS)

TemplateSetKey = tuple[int, ...]
"""The template sets that apply to a message, as indices into the setting `templates.match`."""

Severity = Callable[[Event], str | None]
"""Function that returns PagerDuty's severity for an event, or None if the event's phase determines the severity."""


def _severity_by_phase(event: Event) -> str | None:
    del event
    return None


class TemplateError(DispatcherError):
    """A template can't be used. The error's text contains the file, the line and the reason."""


def built_in_folder() -> Path:
    """Return the folder of the built-in templates: inside the installed package, or in the root of a source
    checkout.
    """
    package = Path(__file__).parent.parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


class Renderer:
    """Renders a channel's message for an event, in the same way for sending and for preview."""

    def __init__(
        self,
        paths: Sequence[Path] = (),
        *,
        template_sets: Sequence[TemplateSet] = (),
        console_url: str = "",
        logs_url: str = "",
        severity: Severity = _severity_by_phase,
        hide_labels: Collection[str] = PROPELLER_LABELS,
        provided: Mapping[str, Path | None] | None = None,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create a Renderer that takes each template file from the first folder that contains it.

        The folders are searched in this order: the folders of the template sets that apply, then `paths`, then the
        built-in folder. All folders have the layout of the built-in `templates/`.

        `console_url`: the URL of Flyte's console. `logs_url`: the URL of an execution's logs, with `{project}`,
        `{domain}` and `{name}` as placeholders. `severity`: function that can replace the phase's severity for
        PagerDuty. `hide_labels`: the names of labels that templates don't get. `provided`: mapping from each channel of
        a plug-in package to the file of its document template, or to None if it has no template. The file
        `NAME/message.yaml` in a folder replaces the template of the channel NAME. `on_failure`: called with the channel
        each time the built-in template is used because a custom template failed.

        Raises TemplateError for a folder that doesn't exist.
        """
        matched = [
            (f"templates.match.{index}.path", path) for index, entry in enumerate(template_sets) for path in entry.path
        ]
        for option, path in [*matched, *(("templates.path", path) for path in paths)]:
            if not path.is_dir():
                raise TemplateError(f"{option}: no such folder: {path}")
        self._paths = paths
        self._template_sets = template_sets
        self._console_url = console_url
        self._logs_url = logs_url
        self._severity = severity
        self._hide_labels = frozenset(hide_labels)
        self._on_failure = on_failure
        self._lock = Lock()
        """Lets only one thread render at a time. Two threads render: the event loop's thread, and the ledger's thread
        during `record`."""
        self._latest: tuple[Event, Context] | None = None
        self._provided = provided or {}
        self._built_in = _CompiledTemplates([built_in_folder()], self._provided, metered=False)
        self._compiled: dict[TemplateSetKey, _CompiledTemplates] = {}
        self._messages_to_skip: dict[tuple[str, TemplateSetKey], int] = {}
        """Mapping from a channel and its template sets to the number of next messages that use the built-in template,
        because a custom template exceeded a limit."""

    def template_set(self, event: Event, recipient: str = "") -> TemplateSetKey:
        """Return which template sets apply to the event and the recipient. Recipients of an event with equal results
        get the same message.
        """
        return tuple([index for index, entry in enumerate(self._template_sets) if entry.applies_to(event, recipient)])

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
        """Render the message to send. Never fails because of a template or the event's data.

        If a custom template fails, or renders a message that the provider would refuse, the built-in template is used
        and an error is logged.

        `recipient`: one of the message's recipients, as the rule writes it. `template`: a launch plan's own mail
        template, which replaces the mail's HTML. `undelivered`: if the message is for fallback recipients, who could
        not be notified, and why. `test`: if true, mark the message as a test notification.
        """
        with self._lock:
            context = self._context(event)
            if test:
                context = context._replace(test=TEST, what=f"{TEST_MARK}{context.what}")
            if undelivered:
                context = context._replace(undelivered=cut(one_line(undelivered), LONGEST_REASON))
            content = self._render_custom(channel, context, self.template_set(event, recipient))
            content = content or self._built_in.render(channel, context)
            content = self._with_launch_plan_template(template, channel, context, content)
        return _with_launch_plan(channel, event, content)

    def change(self, event: Event) -> Content:
        """Render PagerDuty's change event for the first execution of a launch plan's new version."""
        with self._lock:
            return change_event(self._context(event))

    def draft(self, channel: str, event: Event, *, recipient: str = "", template: str | None = None) -> Content:
        """Render a message with the operator's templates, for a preview. The provider may refuse the message.

        Raises TemplateError, with file and line, if a template fails.
        """
        context = self._context(event)
        templates = self._templates(self.template_set(event, recipient))
        try:
            content = templates.render(channel, context)
        except Exception as error:
            raise TemplateError(str(templates.problem(channel, error))) from error
        content = self._with_launch_plan_template(template, channel, context, content)
        return _with_launch_plan(channel, event, content)

    def check(self) -> list[Problem]:
        """Parse every template and render it with sample events. Return the problems, with file and line.

        Each template set is checked as if it were the only one that applies.
        """
        keys = ((), *((index,) for index in range(len(self._template_sets))))
        problems = (
            problem
            for templates in [self._templates(key) for key in keys]
            for channel in (*CHANNELS, *self._provided)
            for problem in templates.check(channel, self._console_url)
        )
        return list(dict.fromkeys(problems))

    def mail_client_problems(self) -> list[Problem]:
        """Return the HTML and CSS in the operator's mail templates that mail programs don't support.

        Messages from such templates are sent nevertheless.
        """
        folders = [*(path for entry in self._template_sets for path in entry.path), *self._paths] or [built_in_folder()]
        files = dict.fromkeys(file for folder in folders for file in sorted(folder.glob("email/*")))
        return [
            Problem(file, line, message)
            for file in files
            if file.name.endswith((".html.j2", ".css"))
            for line, message in _mail_client_problems(file)
        ]

    def _templates(self, key: TemplateSetKey) -> _CompiledTemplates:
        folders = [path for index in key for path in self._template_sets[index].path] + [*self._paths]
        if not folders:
            return self._built_in
        if key not in self._compiled:
            self._compiled[key] = _CompiledTemplates([*folders, built_in_folder()], self._provided, metered=True)
        return self._compiled[key]

    def _render_custom(self, channel: str, context: Context, key: TemplateSetKey) -> Content | None:
        """Render a message with the operator's templates. Returns None if there are no such templates, if one fails, or
        if the provider would refuse the message.
        """
        templates = self._templates(key)
        if templates is self._built_in:
            return None
        if left := self._messages_to_skip.get((channel, key), 0):
            self._messages_to_skip[channel, key] = left - 1
            self._on_failure(channel)
            return None
        skipped = 0
        try:
            content = templates.render(channel, context)
            reason = "; ".join(limits.lint(channel, content))
        except Exception as error:  # noqa: BLE001 - a template may raise any exception; the message is still sent
            reason = str(templates.problem(channel, error))
            if isinstance(error, Stopped) or isinstance(error.__cause__, Stopped):
                self._messages_to_skip[channel, key] = skipped = SKIP_AFTER_STOP
        if not reason:
            return content
        log.error(
            "a template failed: the built-in one is used instead",
            execution=_event_key(context),
            channel=channel,
            reason=reason,
            next_messages=skipped,
        )
        self._on_failure(channel)
        return None

    def _with_launch_plan_template(
        self, template: str | None, channel: str, context: Context, content: Content
    ) -> Content:
        """Replace a mail's HTML and text with the launch plan's own template, unless the filled-in template is empty or
        too large.
        """
        if template is None or channel != "email":
            return content
        try:
            html = flyte_template.substitute(template, context, budget=limits.MAIL_HTML)
        except flyte_template.TooLarge:
            log.error(
                "a launch plan's own template is too large: the built-in one is used instead",
                execution=_event_key(context),
                what=context.what,
            )
            self._on_failure(channel)
            return content
        if not html.strip():
            return content
        return {**content, "html": html, "text": cut(flyte_template.as_text(html), limits.MAIL_TEXT) or content["text"]}

    def _context(self, event: Event) -> Context:
        """Return the event's variables. The variables of the last event are kept, because all messages of an event are
        rendered one after another.
        """
        if self._latest is None or self._latest[0] is not event:
            context = context_of(
                event,
                self._console_url,
                self._logs_url,
                severity=self._severity(event),
                hide_labels=self._hide_labels,
            )
            self._latest = (event, context)
        return self._latest[1]


def _event_key(context: Context) -> str:
    return f"{context.project}/{context.domain}/{context.name}/{context.phase.upper()}"


def _with_launch_plan(channel: str, event: Event, content: Content) -> Content:
    """Add the launch plan, if known, to a mail's content. The email channel derives the mail's List-Id and thread from
    the launch plan.
    """
    plan = event.launch_plan
    if channel != "email" or plan is None:
        return content
    return {**content, "about": {"project": plan.project, "domain": plan.domain, "launch_plan": shortened(plan.name)}}


def sample_event(phase: Phase) -> Event:
    """Return a realistic event of a terminal phase, for previews and checks."""
    return read_event_file(built_in_folder() / "samples" / f"{phase.lower()}.json")


class _Loader(FileSystemLoader):
    """Loads templates from folders. In HTML templates of mail, it writes the style sheet's rules into the tags."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        source, file, uptodate = super().get_source(environment, template)
        if template.startswith("email/") and template.endswith(".html.j2"):
            with suppress(NotInlined):  # the template is used as it is; mail_client_problems() reports the error
                source = inline(source, super().get_source(environment, STYLE_SHEET)[0])
        return source, file, uptodate


class _CompiledTemplates:
    """The templates found in a list of folders, each compiled once."""

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
        """Render a channel's message. Raises any exception that a template raises, and Stopped if a custom template
        exceeds a limit.
        """
        if self._meter is not None:
            self._meter.reset()
        if channel == "email":
            return self._mail(context.variables())
        return self._document(channel)(Variables(context.variables()))

    def check(self, channel: str, console_url: str) -> list[Problem]:
        """Return the problems that are found when the templates are parsed. If there are none, return the problems that
        are found when sample events are rendered.
        """
        if self._meter is not None:
            self._meter.reset()
        try:
            problems = list(self._parse_mail() if channel == "email" else self._parse_document(channel))
        except Exception as error:  # noqa: BLE001 - a template may raise any exception, which is reported here
            return [self.problem(channel, error)]
        return problems or list(self._render_samples(channel, console_url))

    def problem(self, channel: str, error: Exception) -> Problem:
        """Turn a template's error into a problem. File and line come from the error or from its traceback."""
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

    def _parse_mail(self) -> Iterator[Problem]:
        queue, seen = [*MAIL_PARTS.values()], set()
        while queue:
            name = queue.pop(0)
            if name in seen:
                continue
            seen.add(name)
            try:
                source, file, _ = FileSystemLoader.get_source(self._loader, self._plain, name)
                tree = self._plain.parse(source, name, file)
                self._plain.get_template(name)
            except TemplateNotFound:
                continue  # not reported here: rendering reports a missing file, unless the file is optional
            except TemplateSyntaxError as error:
                yield self.problem("email", error)
                continue
            queue += [other for other in find_referenced_templates(tree) if other is not None]
            yield from (Problem(Path(file), line, message) for line, message in undefined_names(tree, self._plain))

    def _parse_document(self, channel: str) -> Iterator[Problem]:
        self._document(channel)
        file = self._main_file(channel)
        (document,) = parse(read_text(file))
        for place, source in strings_of(document.data):
            for _, message in undefined_names(self._plain.parse(source), self._plain):
                yield Problem(file, document.line_of(place), message)

    def _render_samples(self, channel: str, console_url: str) -> Iterator[Problem]:
        seen = set()
        for label, event in _sample_events():
            try:
                content = self.render(channel, context_of(event, console_url))
                file = self._main_file(channel)
                problems = [Problem(file, 0, problem) for problem in limits.lint(channel, content)]
            except Exception as error:  # noqa: BLE001 - a template may raise any exception, which is reported here
                problems = [self.problem(channel, error)]
            for problem in problems:
                if problem not in seen:
                    seen.add(problem)
                    yield Problem(problem.file, problem.line, f"{problem.message} ({label})")

    def _mail(self, variables: Mapping[str, Any]) -> Content:
        all_variables = {**self._plain.globals, **variables}
        subject = self._part("subject", self._plain, all_variables)
        text = self._part("text", self._plain, all_variables)
        html = self._part("html", self._html, all_variables)
        return {
            "subject": cut(one_line(subject), limits.MAIL_SUBJECT),
            "text": cut(text, limits.MAIL_TEXT),
            "html": html,
        }

    def _part(self, part: str, environment: Environment, all_variables: dict[str, Any]) -> str:
        """Render one part of the mail, as `Template.render` does but without copying the variables."""
        template = environment.get_template(MAIL_PARTS[part])
        context = environment.context_class(environment, all_variables, template.name, template.blocks)
        try:
            return "".join(template.root_render_func(context))
        except Exception:  # noqa: BLE001 - raised again below, with the template's lines in the traceback
            environment.handle_exception()

    def _document(self, channel: str) -> Callable[[Variables], Content]:
        if channel not in DOCUMENTS and channel not in self._provided:
            channel = "webhook"
        if channel not in self._documents:
            documents = parse(read_text(self._main_file(channel)))
            if len(documents) != 1:
                raise BadDocument("one YAML document was expected", 1)
            sinks = {"slack": self._slack_sink, "pagerduty": self._pagerduty_sink, "teams": self._teams_sink}
            self._documents[channel] = compile_document(documents[0], sinks.get(channel, self._json_sink))
        return self._documents[channel]

    def _slack_sink(self, place: Place, parent: Mapping[str, Any]) -> Sink:
        if place[-1] in {"url", "color", "when"}:
            return Sink(self._plain, cut, limits.SLACK_BUDGETS["url"])
        if place[-1] == "fallback" or parent.get("type") == "plain_text":
            return Sink(self._plain, cut, limits.SLACK_BUDGETS["button" if "elements" in place else "header"])
        if len(place) == 1:
            return Sink(self._mrkdwn, cut_mrkdwn, limits.SLACK_TEXT)
        budget = "field" if "fields" in place or "elements" in place else "section"
        return Sink(self._mrkdwn, cut_mrkdwn, limits.SLACK_BUDGETS[budget])

    def _pagerduty_sink(self, place: Place, _: Mapping[str, Any]) -> Sink:
        if place[-1] == "summary":
            return Sink(self._plain, cut, limits.PAGERDUTY_SUMMARY)
        if place[-1] in {"href", "src", "client_url"}:
            return Sink(self._plain, cut, limits.PAGERDUTY_URL)
        return Sink(self._plain, cut, limits.PAGERDUTY_DETAIL if "custom_details" in place else limits.PAGERDUTY_FIELD)

    def _teams_sink(self, place: Place, parent: Mapping[str, Any]) -> Sink:
        if place[-1] == "url":
            return Sink(self._plain, cut, limits.TEAMS_URL)
        if parent.get("type") == "TextBlock" or "facts" in place:
            return Sink(self._markdown, cut, limits.TEAMS_TEXT)
        return Sink(self._plain, cut, limits.TEAMS_TEXT)

    def _json_sink(self, _place: Place, _parent: Mapping[str, Any]) -> Sink:
        return Sink(self._plain, cut, limits.WEBHOOK_TEXT)

    def _sandbox(self, **options: Any) -> Sandbox:
        if self._meter is None:
            return Sandbox(self._loader, cache_size=-1, **options)  # -1: caches all templates, without slow LRU order
        return MeteredSandbox(self._loader, self._meter, **options)

    def _main_file(self, channel: str) -> Path:
        """Return the file of a channel's document template, or of the mail's HTML template. An unknown channel uses the
        webhook's template.
        """
        if channel == "email":
            return self._file(MAIL_PARTS["html"])
        if channel not in self._provided:
            return self._file(DOCUMENTS.get(channel, DOCUMENTS["webhook"]))
        custom = self._file(f"{channel}/message.yaml")
        return custom if custom.is_file() else self._provided[channel] or self._file(DOCUMENTS["webhook"])

    def _file(self, name: str) -> Path:
        return next((folder / name for folder in self._folders if (folder / name).is_file()), self._folders[-1] / name)


def _mail_client_problems(file: Path) -> Iterator[tuple[int, str]]:
    source = file.read_text(encoding="utf-8", errors="replace")
    yield from sorted(unsupported(source))
    sheet = next(folder for folder in (file.parent.parent, built_in_folder()) if (folder / STYLE_SHEET).is_file())
    if file.name.endswith(".html.j2"):
        try:
            inline(source, (sheet / STYLE_SHEET).read_text(encoding="utf-8"))
        except NotInlined as error:
            yield 0, str(error)


def _sample_events() -> Iterator[tuple[str, Event]]:
    """Yield one event of each terminal phase, and one event that has only the required fields. Each event comes with a
    label for messages about problems.
    """
    for phase in sorted(TERMINAL):
        yield phase, sample_event(phase)
    full = sample_event(Phase.FAILED)
    yield "an event without details", Event(execution=full.execution, phase=full.phase, occurred_at=full.occurred_at)
