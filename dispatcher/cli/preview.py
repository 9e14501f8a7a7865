"""`dispatcher preview`: the message that would be sent, without sending it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli.options import Config

if TYPE_CHECKING:
    from channels.contract import Content
    from dispatcher.event import Event
    from dispatcher.settings import Settings


class ChannelName(StrEnum):
    """The channels that have built-in templates."""

    EMAIL = "email"
    SLACK = "slack"
    PAGERDUTY = "pagerduty"


class Form(StrEnum):
    """How the preview is written."""

    TERMINAL = "terminal"
    HTML = "html"
    TEXT = "text"
    JSON = "json"
    EML = "eml"


_EXAMPLES: dict[str, dict[str, Any]] = {
    "email": {"host": "localhost", "security": "none", "from": "Flyte <flyte@example.com>"},
    "slack": {"token": "example"},
    "pagerduty": {"services": {"example-service": {"routing_key": "example"}}},
}
_RECIPIENTS = {"email": "you@example.com", "slack": "#alerts", "pagerduty": "example-service"}


def preview(
    channel: Annotated[ChannelName, typer.Option(help="Whose message.")],
    phase: Annotated[
        str, typer.Option(help="SUCCEEDED, FAILED, ABORTED or TIMED_OUT, of a sample execution.")
    ] = "FAILED",
    event: Annotated[
        Path | None, typer.Option("--event", help="An event file instead of the sample.", exists=True, dir_okay=False)
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How to write it.")] = Form.TERMINAL,
    output: Annotated[Path | None, typer.Option(help="Write to this file.", show_default=False)] = None,
    config: Config = None,
) -> None:
    """Render a message without sending it. Exit status 1 where the provider would refuse it."""
    from dispatcher.rendering import Renderer, lint
    from dispatcher.settings import load

    settings = load(config)
    happened = _event(event, phase)
    renderer = Renderer(settings.templates.path, console_url=settings.console_url)
    content = renderer.draft(channel, happened)
    if form is Form.TERMINAL and output is None:
        from dispatcher.cli.output import console
        from dispatcher.cli.picture import picture

        console.print(picture(channel, content))
    else:
        _write(_written(channel, form, content, happened, settings), output)
    problems = lint(channel, content)
    for problem in problems:
        typer.echo(f"{channel} would refuse this: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


def _event(file: Path | None, phase: str) -> Event:
    from dispatcher.decode.files import read_event_file
    from dispatcher.phase import Phase
    from dispatcher.rendering.renderer import sample_event

    try:
        wanted = Phase.parse(phase)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    happened = read_event_file(file) if file is not None else None
    ending = happened.phase if happened is not None else wanted
    if not ending.terminal:
        raise typer.BadParameter(f"nobody is told of {ending}: only of SUCCEEDED, FAILED, ABORTED and TIMED_OUT")
    return happened or sample_event(wanted)


def _written(channel: ChannelName, form: Form, content: Content, event: Event, settings: Settings) -> bytes:
    match form:
        case Form.HTML if channel is ChannelName.EMAIL:
            return str(content["html"]).encode()
        case Form.HTML:
            from dispatcher.drawing import page

            return page(channel, content).encode()
        case Form.TEXT | Form.TERMINAL:
            from dispatcher.drawing import plain_text

            return plain_text(channel, content).encode()
        case Form.EML if channel is not ChannelName.EMAIL:
            raise typer.BadParameter("eml is for email alone; use json")
        case Form.JSON if channel is ChannelName.EMAIL:
            import orjson

            return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        case Form.JSON | Form.EML:
            return _wire(channel, content, event, settings)


def _wire(channel: ChannelName, content: Content, event: Event, settings: Settings) -> bytes:
    """The exact bytes that would be sent, by the configured channel or, without one, by an example's."""
    from channels.catalog import KINDS
    from channels.contract import Message
    from dispatcher.delivery import delivery_key

    section = settings.channel_sections.get(channel) or KINDS[channel].config.model_validate(_EXAMPLES[channel])
    recipient = next(iter(getattr(section, "services", None) or getattr(section, "recipients", None) or ()), None)
    opened = KINDS[channel].open(section)
    address = opened.address(recipient or _RECIPIENTS[channel])
    message = Message(
        key=delivery_key(event.key, channel, (address,)),
        recipients=(address,),
        content=content,
        created_at=event.occurred_at,
    )
    return opened.wire(message).body


def _write(written: bytes, output: Path | None) -> None:
    if output is not None:
        output.write_bytes(written)
        typer.echo(f"written to {output}", err=True)
    else:
        typer.get_binary_stream("stdout").write(written)
