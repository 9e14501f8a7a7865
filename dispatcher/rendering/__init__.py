"""Renders an event into a channel's message. Sending and preview use the same Renderer, so they can't differ."""

from dispatcher.rendering.limits import lint
from dispatcher.rendering.renderer import Renderer, TemplateError
from dispatcher.rendering.template_set import TemplateSet

__all__ = ["Renderer", "TemplateError", "TemplateSet", "lint"]
