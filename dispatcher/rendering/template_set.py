"""An entry of the setting `templates.match`: template folders that apply only to some events or recipients."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from channels.common.comma_list import comma_list
from dispatcher.model.event import Event
from dispatcher.rules.matcher import Matcher, Patterns


class TemplateSet(Matcher):
    """Template folders, and the keys that must all hold for the event and the recipient."""

    recipient: Patterns = ()
    """Patterns for the recipient as a rule writes it: a mail address, `#channel`, or the alias of a PagerDuty service.
    Upper and lower case count as equal."""
    path: Annotated[tuple[Path, ...], BeforeValidator(comma_list)] = Field(min_length=1)
    """Template folders, with the layout of the built-in `templates/`."""

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if not (self.keys or self.recipient):
            raise ValueError(
                "would apply to every message: give a key, such as project or recipient, or templates.path"
            )
        return self

    def applies_to(self, event: Event | None, recipient: str) -> bool:
        """True if all keys hold. Without an event, which digests and summaries don't have, there may be no other key than
        `recipient`.

        `recipient`: the recipient as the rule writes it; empty if the message goes to no particular recipient.
        """
        holds = not self.keys if event is None else self.holds(event) is True
        return holds and self._is_for(recipient.casefold())

    def _is_for(self, recipient: str) -> bool:
        return not self.recipient or any(fnmatchcase(recipient, pattern.casefold()) for pattern in self.recipient)
