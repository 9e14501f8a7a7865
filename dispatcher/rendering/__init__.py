"""Renders an event into a channel's message. Sending and preview use the same Renderer, so a preview shows the real
message.
"""

from dispatcher.rendering.renderer import Renderer, TemplateError
from dispatcher.rendering.template_set import TemplateSet

__all__ = ["Renderer", "TemplateError", "TemplateSet"]
