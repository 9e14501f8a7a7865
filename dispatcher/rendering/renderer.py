"""The Renderer, which fills in the built-in templates, or an operator's template files that replace them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock

import structlog

from channels.common.text import cut
from channels.contract import ChannelType, Content
from dispatcher.errors import DispatcherError
from dispatcher.flyte.event_files import read_event_file
from dispatcher.model.event import Event, shortened
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.parsing.yaml import Problem
from dispatcher.rendering import flyte_template, template_process
from dispatcher.rendering.compiled import STYLE_SHEET, CompiledTemplates, TemplateFailed
from dispatcher.rendering.context import PROPELLER_LABELS, Context, context_of
from dispatcher.rendering.folders import TemplateFolders, Templates
from dispatcher.rendering.mail_clients import unsupported
from dispatcher.rendering.styles import NotInlined, inline
from dispatcher.rendering.template_set import TemplateSet
from dispatcher.rendering.text import one_line

log = structlog.get_logger(__name__)

LONGEST_REASON = 600
TEST = "This is a test notification: no execution has finished."
TEST_MARK = "TEST: "
"""Prefix of the variable `what` in a test notification. So even a template that doesn't use the variable `test` shows
that the message is a test."""

SKIP_AFTER_STOP = 100
"""After a custom template exceeded a limit, this many messages use the built-in template without trying the custom
template, because each try takes up to a second."""

TemplateSetKey = tuple[int, ...]
"""The template sets that apply to a message, as indices into the setting `templates.match`."""

_UNKNOWN = Templates("")

Severity = Callable[[Event], str | None]
"""Function that returns the severity for an event, or None if the event's phase determines the severity."""


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
        channel_types: Mapping[str, ChannelType],
        paths: Sequence[Path] = (),
        *,
        template_sets: Sequence[TemplateSet] = (),
        console_url: str = "",
        logs_url: str = "",
        severity: Severity = _severity_by_phase,
        hide_labels: Collection[str] = PROPELLER_LABELS,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create a Renderer that takes each template file from the first folder that contains it.

        The folders are searched in this order: the folders of the template sets that apply, then `paths`, then the
        built-in folder. All folders have the layout of the built-in `templates/`.

        `channel_types`: mapping from a channel's name to its type. `console_url`: the URL of Flyte's console.
        `logs_url`: the URL of an execution's logs, with `{project}`, `{domain}` and `{name}` as placeholders.
        `severity`: function that can replace the phase's severity. `hide_labels`: the names of labels that templates
        don't get. `on_failure`: called with the channel each time the built-in template is used because a custom
        template failed.

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
        """Lets only one thread render at a time. The event loop's thread renders, and other threads render large events
        and operators' templates."""
        self._latest: tuple[Event, Context] | None = None
        self._change_events = {
            name: kind.change_event for name, kind in channel_types.items() if kind.change_event is not None
        }
        self._templates = {
            name: Templates(name, kind.form, f"{name}/{kind.document}", kind.template)
            for name, kind in channel_types.items()
        }
        self._built_in_folders = TemplateFolders((built_in_folder(),))
        self._built_in = CompiledTemplates(self._built_in_folders)
        self._owner = template_process.new_owner()
        self._messages_to_skip: dict[tuple[str, TemplateSetKey], int] = {}
        """Mapping from a channel and its template sets to the number of next messages that use the built-in template,
        because a custom template exceeded a limit."""

    @property
    def has_operator_templates(self) -> bool:
        """True if messages may be rendered in another process (`template_process`), for which `render` waits."""
        return bool(self._paths or self._template_sets)

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
            content = content or self._built_in.render(self._templates_of(channel), context)
            content = self._with_launch_plan_template(template, channel, context, content)
        return self._with_launch_plan(channel, event, content)

    def change(self, channel: str, event: Event) -> Content:
        """Render a channel's change event for the first execution of a launch plan's new version.

        Raises KeyError if the channel has no change events.
        """
        with self._lock:
            return self._change_events[channel](self._context(event).variables())

    def draft(self, channel: str, event: Event, *, recipient: str = "", template: str | None = None) -> Content:
        """Render a message with the operator's templates, for a preview. The provider may refuse the message.

        Raises TemplateError, with file and line, if a template fails.
        """
        context = self._context(event)
        folders = self._operator_folders(self.template_set(event, recipient))
        try:
            content = self._render(channel, context, folders)
        except TemplateFailed as failed:
            raise TemplateError(str(failed)) from failed
        content = self._with_launch_plan_template(template, channel, context, content)
        return self._with_launch_plan(channel, event, content)

    def check(self) -> list[Problem]:
        """Parse every template and render it with sample events. Return the problems, with file and line.

        Each template set is checked as if it were the only one that applies.
        """
        keys = ((), *((index,) for index in range(len(self._template_sets))))
        problems = (
            problem
            for folders in map(self._operator_folders, keys)
            for channel in self._templates
            for problem in self._check(channel, folders)
        )
        return list(dict.fromkeys(problems))

    def _check(self, channel: str, folders: TemplateFolders | None) -> Iterator[Problem]:
        """Yield the problems that are found when the templates are parsed. If there are none, yield the problems that
        are found when sample events are rendered.
        """
        if folders is None:
            problems = self._built_in.parse(self._templates_of(channel))
        else:
            problems = template_process.SHARED.parse(self._owner, folders, self._templates_of(channel))
        yield from problems
        seen = set(problems)
        for label, event in _sample_events() if not problems else ():
            try:
                content = self._render(channel, context_of(event, self._console_url), folders)
                file = (folders or self._built_in_folders).main_file(self._templates_of(channel))
                problems = [Problem(file, 0, problem) for problem in self._templates_of(channel).form.problems(content)]
            except TemplateFailed as failed:
                problems = [failed.problem]
            for problem in problems:
                if problem not in seen:
                    seen.add(problem)
                    yield Problem(problem.file, problem.line, f"{problem.message} ({label})")

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

    def _operator_folders(self, key: TemplateSetKey) -> TemplateFolders | None:
        """Return the folders for a message of these template sets; None if only the built-in folder applies."""
        folders = [path for index in key for path in self._template_sets[index].path] + [*self._paths]
        return TemplateFolders((*folders, built_in_folder())) if folders else None

    def _render(self, channel: str, context: Context, folders: TemplateFolders | None) -> Content:
        """Render a message. Raises TemplateFailed."""
        if folders is None:
            return self._built_in.render(self._templates_of(channel), context)
        return template_process.SHARED.render(self._owner, folders, self._templates_of(channel), context)

    def _render_custom(self, channel: str, context: Context, key: TemplateSetKey) -> Content | None:
        """Render a message with the operator's templates. Returns None if there are no such templates, if one fails, or
        if the provider would refuse the message.
        """
        folders = self._operator_folders(key)
        if folders is None:
            return None
        if left := self._messages_to_skip.get((channel, key), 0):
            self._messages_to_skip[channel, key] = left - 1
            self._on_failure(channel)
            return None
        skipped = 0
        try:
            content = self._render(channel, context, folders)
            reason = "; ".join(self._templates_of(channel).form.problems(content))
        except TemplateFailed as failed:
            reason = str(failed)
            if failed.stopped:
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
        limits = self._templates_of(channel).form.mail
        if template is None or limits is None:
            return content
        try:
            html = flyte_template.substitute(template, context, budget=limits.html)
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
        return {**content, "html": html, "text": cut(flyte_template.as_text(html), limits.text) or content["text"]}

    def _with_launch_plan(self, channel: str, event: Event, content: Content) -> Content:
        """Add the launch plan, if known, to a mail's content. The mail's List-Id and thread are derived from it."""
        plan = event.launch_plan
        if self._templates_of(channel).form.mail is None or plan is None:
            return content
        about = {"project": plan.project, "domain": plan.domain, "launch_plan": shortened(plan.name)}
        return {**content, "about": about}

    def _templates_of(self, channel: str) -> Templates:
        """Return a channel's templates. All channels that rules name and nobody registered share one document."""
        return self._templates.get(channel, _UNKNOWN)

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


def sample_event(phase: Phase) -> Event:
    """Return a realistic event of a terminal phase, for previews and checks."""
    return read_event_file(built_in_folder() / "samples" / f"{phase.lower()}.json")


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
