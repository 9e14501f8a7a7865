"""The operator's template folders: which of them apply to a message, and what bounds their use.

Their templates are rendered in a process with limits (`template_process`). A template that fails, or a message that the
provider would refuse, never reaches anybody: the caller then uses the built-in template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from channels.contract import Content
from dispatcher.errors import SettingsError
from dispatcher.model.event import Event
from dispatcher.rendering.compiled import TemplateError
from dispatcher.rendering.context import Context
from dispatcher.rendering.folders import TemplateFolders, Templates, built_in_folder
from dispatcher.rendering.template_process import IsolatedTemplates, new_owner
from dispatcher.rendering.template_set import TemplateSet

log = structlog.get_logger(__name__)

SKIP_AFTER_STOP = 100
"""After a template exceeded a limit, this many messages use the built-in template without trying the operator's
template, because each try takes up to a second."""

TemplateSetKey = tuple[int, ...]
"""The template sets that apply to a message, as indices into the setting `templates.match`."""


class OperatorTemplates:
    """The templates in the folders of the settings `templates.path` and `templates.match`."""

    def __init__(
        self, paths: Sequence[Path], template_sets: Sequence[TemplateSet], on_failure: Callable[[str], None]
    ) -> None:
        """`on_failure`: called with the channel each time that the built-in template must be used.

        Raises SettingsError for a folder that doesn't exist.
        """
        matched = [(f"match.{index}.path", path) for index, entry in enumerate(template_sets) for path in entry.path]
        for option, path in [*matched, *(("path", path) for path in paths)]:
            if not path.is_dir():
                raise SettingsError(f"templates.{option}: no such folder: {path}")
        self.folders = [*(path for _, path in matched), *paths]
        """All folders."""
        self.keys: Sequence[TemplateSetKey] = ((), *((index,) for index in range(len(template_sets))))
        """The keys with at most one template set."""
        self._paths = paths
        self._template_sets = template_sets
        self._on_failure = on_failure
        self._owner = new_owner()
        self._messages_to_skip: dict[tuple[str, TemplateSetKey], int] = {}
        """Mapping from a channel and its template sets to the number of next messages that use the built-in template,
        because a template exceeded a limit."""

    def key_of(self, event: Event, recipient: str) -> TemplateSetKey:
        """Return which template sets apply to the event and the recipient."""
        return tuple([index for index, entry in enumerate(self._template_sets) if entry.applies_to(event, recipient)])

    def of(self, key: TemplateSetKey) -> IsolatedTemplates | None:
        """Return the templates for a message of these template sets; None if only the built-in templates apply."""
        folders = [path for index in key for path in self._template_sets[index].path] + [*self._paths]
        return IsolatedTemplates(self._owner, TemplateFolders((*folders, built_in_folder()))) if folders else None

    def render(self, channel: str, templates: Templates, context: Context, key: TemplateSetKey) -> Content | None:
        """Render a message. Returns None if the built-in template must be used: if there is no other, if it fails, or if
        the provider would refuse the message. A failure is logged.
        """
        isolated = self.of(key)
        if isolated is None:
            return None
        if left := self._messages_to_skip.get((channel, key), 0):
            self._messages_to_skip[channel, key] = left - 1
            self._on_failure(channel)
            return None
        skipped = 0
        try:
            content = isolated.render(templates, context)
            reason = "; ".join(templates.form.problems(content))
        except TemplateError as error:
            reason = str(error)
            if error.stopped:
                self._messages_to_skip[channel, key] = skipped = SKIP_AFTER_STOP
        if not reason:
            return content
        log.error(
            "a template failed: the built-in one is used instead",
            execution=context.event_key,
            channel=channel,
            reason=reason,
            next_messages=skipped,
        )
        self._on_failure(channel)
        return None
