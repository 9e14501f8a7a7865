"""The operator's template folders: which of them apply to a message, and what bounds their use.

Their templates are rendered in a process with limits (`template_process`). A template that fails, or a message that the
provider would refuse, never reaches anybody: the caller then uses the built-in template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

TemplateSetKey = tuple[Path, ...]
"""The template folders that apply to a message, before those of the setting `templates.path`."""


class OperatorTemplates:
    """The templates in the folders of the settings `templates.path`, `templates.match` and of contacts."""

    def __init__(
        self,
        paths: Sequence[Path],
        template_sets: Sequence[TemplateSet],
        contact_folders: Mapping[str, tuple[Path, ...]],
        on_failure: Callable[[str], None],
    ) -> None:
        """`contact_folders`: mapping from a contact's option, such as `contacts.ml.templates`, to its template folders.

        `on_failure`: called with the channel each time that the built-in template must be used.

        Raises SettingsError for a folder that doesn't exist.
        """
        sets = {f"templates.match.{index}.path": entry.path for index, entry in enumerate(template_sets)}
        sets |= contact_folders
        given = [(option, path) for option, folders in {**sets, "templates.path": paths}.items() for path in folders]
        for option, path in given:
            if not path.is_dir():
                raise SettingsError(f"{option}: no such folder: {path}")
        self.folders = [path for _, path in given]
        """All folders."""
        self.keys: Sequence[TemplateSetKey] = tuple(dict.fromkeys([(), *sets.values()]))
        """The keys with at most one template set or contact."""
        self._paths = paths
        self._template_sets = template_sets
        self._on_failure = on_failure
        self._owner = new_owner()
        self._messages_to_skip: dict[tuple[str, TemplateSetKey], int] = {}
        """Mapping from a channel and a key to the number of next messages that use the built-in template,
        because a template exceeded a limit."""

    def key_of(self, event: Event | None, recipient: str, folders: tuple[Path, ...]) -> TemplateSetKey:
        """Return which folders apply to the event and the recipient. `folders`: those of the recipient's contact.

        `event`: None for a digest or summary.
        """
        applying = [entry for entry in self._template_sets if entry.applies_to(event, recipient)]
        return (*folders, *(path for entry in applying for path in entry.path))

    def of(self, key: TemplateSetKey) -> IsolatedTemplates | None:
        """Return the templates for a message of this key; None if only the built-in templates apply."""
        folders = [*key, *self._paths]
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
