"""Jinja's sandbox, in which all templates run. It denies access to files and to Python's internals.

It limits neither time nor memory. The built-in templates need no limit: the event's size limits their work, and tests
check this. An operator's templates run in a separate process, which has limits (`template_process`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dispatcher.rendering.context import Entity, Failure
from dispatcher.rendering.times import Time

_FIELDS: Mapping[type, frozenset[str]] = {
    kind: frozenset(field.name for field in fields(kind)) for kind in (Entity, Failure, Time)
}
"""Mapping from a type of the templates' variables to its fields, which are texts."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The Jinja environment of all templates."""

    def __init__(self, loader: BaseLoader, **options: Any) -> None:
        """`options`: those of Jinja's `Environment`."""
        super().__init__(
            loader=loader,
            undefined=StrictUndefined,  # an unknown name is an error
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            **options,
        )

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """True if a template may read the attribute. The fields of variables are known to be safe; Jinja's own tests
        would take a third of the time to render a mail.
        """
        return attr in _FIELDS.get(type(obj), ()) or super().is_safe_attribute(obj, attr, value)
