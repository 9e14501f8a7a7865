"""The Renderer, which fills in the built-in templates, or an operator's template files that replace them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from threading import Lock
from types import MappingProxyType

import structlog
from jinja2 import Environment

from channels.common.text import cut
from channels.contract import ChannelType, Content
from dispatcher.model.delivery import Outage
from dispatcher.model.event import Event, shortened
from dispatcher.model.summary import Summary
from dispatcher.parsing.yaml import Problem
from dispatcher.rendering import flyte_template
from dispatcher.rendering.compiled import CompiledTemplates
from dispatcher.rendering.context import PROPELLER_LABELS, Context, context_of, resolving
from dispatcher.rendering.folders import TemplateFolders, Templates, built_in_folder
from dispatcher.rendering.operator_templates import OperatorTemplates, TemplateSetKey
from dispatcher.rendering.samples import sample_events, sample_summaries
from dispatcher.rendering.summary_context import EXTENTS, Links, summary_context
from dispatcher.rendering.template_checks import mail_client_problems, template_problems
from dispatcher.rendering.template_set import TemplateSet
from dispatcher.rendering.text import one_line

log = structlog.get_logger(__name__)

LONGEST_REASON = 600
TEST = "This is a test notification: no execution has finished."
TEST_MARK = "TEST: "
"""Prefix of the variable `what` in a test notification. So even a template that doesn't use the variable `test` shows
that the message is a test."""

_UNKNOWN = Templates("")

Severity = Callable[[Event], str | None]
"""Function that returns the severity for an event, or None if the event's phase determines the severity."""


def _severity_by_phase(event: Event) -> str | None:
    del event
    return None


class Renderer:
    """Renders a channel's message for an event, in the same way for sending and for preview."""

    def __init__(
        self,
        channel_types: Mapping[str, ChannelType],
        paths: Sequence[Path] = (),
        *,
        template_sets: Sequence[TemplateSet] = (),
        contact_folders: Mapping[str, tuple[Path, ...]] = MappingProxyType({}),
        console_url: str = "",
        logs_url: str = "",
        severity: Severity = _severity_by_phase,
        hide_labels: Collection[str] = PROPELLER_LABELS,
        timezone: tzinfo = UTC,
        dispatcher_url: str = "",
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create a Renderer that takes each template file from the first folder that contains it.

        The folders are searched in this order: the folders of the recipient's contact, those of the template sets that
        apply, then `paths`, then the built-in folder. All folders have the layout of the built-in `templates/`.

        `channel_types`: mapping from a channel's name to its type. `contact_folders`: mapping from a contact's option,
        such as `contacts.ml.templates`, to the folders that it may pass to the methods. `console_url`: the URL of Flyte's
        console. `logs_url`: the URL of an execution's logs, with `{project}`, `{domain}` and `{name}` as placeholders.
        `severity`: function that can replace the phase's severity. `hide_labels`: the names of labels that templates
        don't get. `timezone`: the zone of the times' part `local`. `dispatcher_url`: the URL at which browsers reach the
        dispatcher, whose console shows the members of digests. `on_failure`: called with the channel each time the
        built-in template is used because a custom template failed.

        Raises SettingsError for a folder that doesn't exist.
        """
        self._console_url = console_url
        self._logs_url = logs_url
        self._links = Links(flyte=console_url, dispatcher=dispatcher_url)
        self._severity = severity
        self._hide_labels = frozenset(hide_labels)
        self._timezone = timezone
        self._on_failure = on_failure
        self._lock = Lock()
        """Lets only one thread render at a time. The event loop's thread renders, and other threads render large events
        and operators' templates."""
        self._latest: tuple[Event, tzinfo, Context] | None = None
        self._change_events = {
            name: kind.change_event for name, kind in channel_types.items() if kind.change_event is not None
        }
        self._templates = {name: Templates.of(name, kind) for name, kind in channel_types.items()}
        self._built_in = CompiledTemplates(TemplateFolders((built_in_folder(),)), environment=Environment)
        self._operator = OperatorTemplates(paths, template_sets, contact_folders, on_failure)

    @property
    def has_operator_templates(self) -> bool:
        """True if messages may be rendered in another process (`template_process`), for which `render` waits."""
        return bool(self._operator.folders)

    def template_set(self, event: Event, recipient: str = "", folders: tuple[Path, ...] = ()) -> TemplateSetKey:
        """Return which template folders apply to the event and the recipient. Recipients of an event with equal results
        can get the same message. `folders`: those of the recipient's contact.
        """
        return self._operator.key_of(event, recipient, folders)

    def render(
        self,
        channel: str,
        event: Event,
        *,
        recipient: str = "",
        template: str | None = None,
        undelivered: str = "",
        outage: Outage | None = None,
        test: bool = False,
        folders: tuple[Path, ...] = (),
        zone: tzinfo | None = None,
        severity: str = "",
    ) -> Content:
        """Render the message to send. Never fails because of a template or the event's data.

        If a custom template fails, or renders a message that the provider would refuse, the built-in template is used
        and an error is logged.

        `recipient`: one of the message's recipients, as the rule writes it. `template`: a launch plan's own mail
        template, which replaces the mail's HTML. `undelivered`: if the message is for fallback recipients, who could
        not be notified, and why. `outage`: what a resolved notice resolves. `test`: if true, mark the message as a test
        notification. `folders`, `zone`: the template folders and the time zone of the recipient's contact. `severity`:
        replaces the severity that the settings and the phase give.
        """
        with self._lock:
            context = self._context(event, outage, zone, severity)
            if test:
                context = context._replace(test=TEST, what=f"{TEST_MARK}{context.what}")
            if undelivered:
                context = context._replace(undelivered=cut(one_line(undelivered), LONGEST_REASON))
            templates = self._templates_of(channel)
            content = self._operator.render(channel, templates, context, self.template_set(event, recipient, folders))
            content = content or self._built_in.render(templates, context)
            return self._finished(channel, event, context, content, template)

    def render_summary(
        self,
        channel: str,
        summary: Summary,
        *,
        recipient: str = "",
        undelivered: str = "",
        folders: tuple[Path, ...] = (),
        zone: tzinfo | None = None,
        severity: str = "",
    ) -> Content:
        """Render the message of a digest or summary. Never fails because of a template or the data.

        It lists as many groups and executions as the built-in template can within the provider's limits. The other
        arguments are those of `render`; template sets that have keys of events don't apply.
        """
        with self._lock:
            templates = self._templates_of(channel).of_summaries
            context, content = self._fitting(templates, summary, severity, zone, undelivered)
            key = self._operator.key_of(None, recipient, folders)
            return self._operator.render(channel, templates, context, key) or content

    def draft_summary(
        self,
        channel: str,
        summary: Summary,
        *,
        recipient: str = "",
        folders: tuple[Path, ...] = (),
        zone: tzinfo | None = None,
        severity: str = "",
    ) -> Content:
        """Render a digest or summary with the operator's templates, for a preview. The provider may refuse the message.

        Raises TemplateError, with file and line, if a template fails.
        """
        templates = self._templates_of(channel).of_summaries
        compiled = self._operator.of(self._operator.key_of(None, recipient, folders))
        context, content = self._fitting(templates, summary, severity, zone)
        return compiled.render(templates, context) if compiled is not None else content

    def summary_variables(self, channel: str, summary: Summary, *, zone: tzinfo | None = None) -> Context:
        """Return the variables that templates get of a digest or summary. The arguments are those of `render_summary`."""
        return self._fitting(self._templates_of(channel).of_summaries, summary, "", zone)[0]

    def _fitting(
        self, templates: Templates, summary: Summary, severity: str, zone: tzinfo | None, undelivered: str = ""
    ) -> tuple[Context, Content]:
        """Return the variables of the largest extent with which the built-in message is within the provider's limits, and
        that message.
        """
        for extent in EXTENTS:
            context = summary_context(summary, extent, self._links, severity=severity, zone=zone or self._timezone)
            if undelivered:
                context = context._replace(undelivered=cut(one_line(undelivered), LONGEST_REASON))
            content = self._built_in.render(templates, context)
            if not templates.form.problems(content):
                break
        return context, content

    def change(self, channel: str, event: Event) -> Content:
        """Render a channel's change event for the first execution of a launch plan's new version.

        Raises KeyError if the channel has no change events.
        """
        with self._lock:
            return self._change_events[channel](self._context(event).variables())

    def variables(
        self, event: Event, outage: Outage | None = None, *, zone: tzinfo | None = None, severity: str = ""
    ) -> Context:
        """Return the variables that templates get. The arguments are those of `render`."""
        with self._lock:
            return self._context(event, outage, zone, severity)

    def draft(
        self,
        channel: str,
        event: Event,
        *,
        recipient: str = "",
        template: str | None = None,
        outage: Outage | None = None,
        folders: tuple[Path, ...] = (),
        zone: tzinfo | None = None,
        severity: str = "",
    ) -> Content:
        """Render a message with the operator's templates, for a preview. The provider may refuse the message.

        Raises TemplateError, with file and line, if a template fails.
        """
        context = self.variables(event, outage, zone=zone, severity=severity)
        compiled = self._operator.of(self.template_set(event, recipient, folders)) or self._built_in
        return self._finished(channel, event, context, compiled.render(self._templates_of(channel), context), template)

    def check(self) -> list[Problem]:
        """Parse every template and render it with sample events. Return the problems, with file and line.

        Each template set, and each contact's folders, are checked as if no other applied.
        """
        events = [(label, context_of(event, self._console_url)) for label, event in sample_events()]
        summaries = [(label, summary_context(one, EXTENTS[0], self._links)) for label, one in sample_summaries()]
        problems = (
            problem
            for key in self._operator.keys
            for templates in self._templates.values()
            for kind, samples in ((templates, events), (templates.of_summaries, summaries))
            for problem in template_problems(self._operator.of(key) or self._built_in, kind, samples)
        )
        return list(dict.fromkeys(problems))

    def mail_client_problems(self) -> list[Problem]:
        """Return the HTML and CSS in the operator's mail templates that mail programs don't support."""
        return list(mail_client_problems(self._operator.folders or [built_in_folder()]))

    def _finished(
        self, channel: str, event: Event, context: Context, content: Content, template: str | None
    ) -> Content:
        """Complete a mail's content: with the launch plan's own template, unless it comes out empty or too large, and
        with the launch plan's name, from which the mail's List-Id and thread are derived.
        """
        limits, plan = self._templates_of(channel).form.mail, event.launch_plan
        if limits is None:
            return content
        if template is not None:
            try:
                html = flyte_template.substitute(template, context, budget=limits.html)
            except flyte_template.TooLarge:
                log.error(
                    "a launch plan's own template is too large: the built-in one is used instead",
                    execution=context.event_key,
                    what=context.what,
                )
                self._on_failure(channel)
                html = ""
            if html.strip():
                text = cut(flyte_template.as_text(html), limits.text)
                content = {**content, "html": html, "text": text or content["text"]}
        if plan is None:
            return content
        about = {"project": plan.project, "domain": plan.domain, "launch_plan": shortened(plan.name)}
        return {**content, "about": about}

    def _templates_of(self, channel: str) -> Templates:
        """Return a channel's templates. All channels that rules name and nobody registered share one document."""
        return self._templates.get(channel, _UNKNOWN)

    def _context(
        self, event: Event, outage: Outage | None = None, zone: tzinfo | None = None, severity: str = ""
    ) -> Context:
        """Return the message's variables. The variables of the last event are kept, because all messages of an event are
        rendered one after another.
        """
        zone = zone or self._timezone
        if self._latest is None or self._latest[0] is not event or self._latest[1] is not zone:
            context = context_of(
                event,
                self._console_url,
                self._logs_url,
                severity=self._severity(event),
                hide_labels=self._hide_labels,
                zone=zone,
            )
            self._latest = (event, zone, context)
        context = self._latest[2]
        if severity:
            context = context._replace(severity=severity)
        return context if outage is None else resolving(context, event, outage, zone)
