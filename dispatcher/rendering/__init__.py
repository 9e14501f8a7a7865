"""An event becomes a channel's message. One Renderer serves sending and preview alike, so they can't differ.

`context` is what templates see; `text` cleans, cuts and escapes; `traceback` finds the useful part of an
error; `documents` are the templates whose result is JSON; `limits` what each provider takes; `undefined`
the names that templates get wrong; `styles` the style sheet in a mail's tags; `sandbox` where templates run, and stops those that never end;
`compiling` how they are compiled; `overrides` the templates of some messages alone; `flyte` the templates that launch plans bring along.
"""

from dispatcher.rendering.limits import lint
from dispatcher.rendering.renderer import Renderer, TemplateError
from dispatcher.rendering.template_set import Override

__all__ = ["Override", "Renderer", "TemplateError", "lint"]
