"""Renders an event into a channel's message. Sending and preview use the same `Renderer`, so a preview shows the real
message.

This file imports nothing: the process that renders operators' templates imports single modules, without pydantic.
"""
