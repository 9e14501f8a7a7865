"""`dispatcher send-test`: one notification, marked as a test, through the real settings and the real channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._options import Config

if TYPE_CHECKING:
    from channels.contract import Channel, Content, Message, Receipt
    from dispatcher.config.settings import Settings
    from dispatcher.model.event import Event
    from dispatcher.planning.planner import Target


def send_test(
    channel: Annotated[str, typer.Option(help="The channel, as the settings call it.", show_default=False)],
    to: Annotated[
        str, typer.Option("--to", help="Who gets it, as a rule would write it: nobody by default.", show_default=False)
    ],
    phase: Annotated[str, typer.Option(help="SUCCEEDED, FAILED, ABORTED or TIMED_OUT.")] = "FAILED",
    config: Config = None,
) -> None:
    """Send one notification that is marked as a test. Tells the provider's answer.

    Goes the way of any other, by the settings' templates, recipients and secrets, but needs neither Kafka nor the
    ledger, and is tried once. Exit status 1 where it wasn't taken. PagerDuty opens an incident for it.
    """
    import asyncio

    from channels.contract import ChannelError, InDoubt, Later, UnknownRecipient
    from dispatcher.clock import SystemClock
    from dispatcher.config.settings import load
    from dispatcher.model.phase import Phase
    from dispatcher.rendering.renderer import sample_event
    from dispatcher.runtime.service import make_planner, open_channels

    try:
        wanted = Phase.parse(phase)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not wanted.terminal:
        raise typer.BadParameter(f"nobody is told of {wanted}: only of SUCCEEDED, FAILED, ABORTED and TIMED_OUT")
    settings = load(config)
    channels = open_channels(settings)
    event = sample_event(wanted).model_copy(update={"occurred_at": SystemClock().now()})
    try:
        target = make_planner(settings, channels).target(channel, to)
        if target.channel != channel:
            typer.echo(f"{channel} doesn't serve {to}: it goes by {target.channel}")
        message = _message(target, event, _content(settings, target, event))
        receipt = asyncio.run(_send(channels[target.channel], message))
    except ChannelError as error:
        match error:
            case Later():
                verdict = "not taken for now (a delivery would be tried again)"
            case InDoubt():
                verdict = "in doubt: it may have arrived (a delivery would be tried again)"
            case UnknownRecipient():
                verdict = "nobody here by that name (a delivery would go to the channel's fallback, or be dead)"
            case _:
                verdict = "refused (a delivery would be dead)"
        typer.echo(f"{verdict}: {error.reason}", err=True)
        if error.answer is not None:
            typer.echo(f"the provider answered {error.answer.status} {error.answer.text}".rstrip(), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"sent: {target.channel} took it, and answered {receipt.answer.status} {receipt.answer.text}".rstrip())
    for name, value in receipt.reference.items():
        typer.echo(f"  {name}: {value}")


def _content(settings: Settings, target: Target, event: Event) -> Content:
    """The message. Raises TemplateError where it could be taken for a real one."""
    import orjson

    from dispatcher.rendering.renderer import TEST_MARK, TemplateError
    from dispatcher.runtime.service import make_renderer

    content = make_renderer(settings).render(target.channel, event, recipient=target.recipient, test=True)
    if TEST_MARK.strip() not in orjson.dumps(content).decode():
        raise TemplateError(
            f"the {target.channel} templates say neither `what` nor `test`: it would look like a real one"
        )
    return content


def _message(target: Target, event: Event, content: Content) -> Message:
    """A key of its own each time, or PagerDuty would merge two tests."""
    from channels.contract import Message
    from dispatcher.model.delivery import delivery_key

    at = event.occurred_at
    key = delivery_key(f"test {at.isoformat()}", target.channel, (target.address,))
    return Message(key=key, recipients=(target.address,), content=content, created_at=at)


async def _send(channel: Channel, message: Message) -> Receipt:
    try:
        return await channel.send(message)
    finally:
        await channel.aclose()
