"""Jinja's sandbox, in which all templates run. It denies access to files and to Python's internals.

It limits neither time nor memory. The built-in templates need no limit: the event's size limits their work, and tests
check this. An operator's templates run in a separate process, which has limits (`template_process`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from jinja2 import BaseLoader, StrictUndefined
from jinja2.compiler import CodeGenerator
from jinja2.runtime import Context as JinjaContext
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing
from markupsafe import Markup

from dispatcher.rendering.compiler import Compiler
from dispatcher.rendering.context import Entity, Failure
from dispatcher.rendering.text import escape_html

_SAFE_ATTRIBUTES: Mapping[type, frozenset[str]] = {
    **{kind: frozenset(field.name for field in fields(kind)) for kind in (Entity, Failure)},
    dict: frozenset({"get", "items", "keys", "values"}),
}
"""Mapping from a type to its attributes that are always safe. They are read without Jinja's safety check, because the
check takes longer than reading the attribute."""
_OPTIONS: Mapping[str, Any] = {
    "undefined": StrictUndefined,  # an unknown name is an error
    "trim_blocks": True,
    "lstrip_blocks": True,
    "auto_reload": False,
}


def operator_sandbox(loader: BaseLoader, **options: Any) -> ImmutableSandboxedEnvironment:
    """Return Jinja's own sandbox, for an operator's templates."""
    return ImmutableSandboxedEnvironment(loader=loader, **{**_OPTIONS, **options})


class BuiltInSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox for the built-in templates, with shortcuts that save time."""

    code_generator_class: type[CodeGenerator] = Compiler
    escape = staticmethod(escape_html)

    def __init__(self, loader: BaseLoader, **options: Any) -> None:
        # -1: caches all templates, without slow LRU order
        super().__init__(loader=loader, cache_size=-1, **{**_OPTIONS, **options})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute in _SAFE_ATTRIBUTES.get(type(obj), ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    # As in Jinja, parameters begin with underscores, so that they can't clash with a template's keyword arguments.
    def call(__self, __context: JinjaContext, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805, PYI063
        """Call macros directly, because Jinja first checks a macro's safety and arguments, which is slower."""
        if type(__obj) is not Macro:
            return super().call(__context, __obj, *args, **kwargs)
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        omitted = len(__obj.arguments) - len(args)
        if kwargs or omitted < 0 or __obj.catch_kwargs or __obj.catch_varargs or __obj.caller:
            return __obj(__context.eval_ctx, *args, **kwargs)
        text = __obj._func(*args, *(missing,) * omitted)  # noqa: SLF001 - no public method skips the checks
        return str.__new__(Markup, text) if __context.eval_ctx.autoescape else text
