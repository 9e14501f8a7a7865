"""`dispatcher send-test`: sends one real message, marked as a test, through a configured channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._options import Config
from dispatcher.cli._output import write_line

if TYPE_CHECKING:
    from channels.contract import Channel, Content, Message, Receipt
    from dispatcher.config.settings import Settings
    from dispatcher.model.event import Event
    from dispatcher.planning.planner import Target


def send_test(
    channel: Annotated[str, typer.Option(help="The channel's name in the settings.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="The recipient, written as in a rule.", show_default=False)],
    phase: Annotated[
        str, typer.Option(help="The phase in the message: SUCCEEDED, FAILED, ABORTED or TIMED_OUT.")
    ] = "FAILED",
    config: Config = None,
) -> None:
    """Send one real message, marked as a test. Prints the provider's answer.

    The command uses the templates, recipients and secrets of the settings, but neither Kafka nor the ledger. It makes
    one attempt. PagerDuty opens an incident for the message. Exit status 1 if the provider did not accept the message.
    """
    import asyncio

    from channels.contract import ChannelError, InDoubt, Later, UnknownRecipient
    from dispatcher.clock import SystemClock
    from dispatcher.config.settings import load
    from dispatcher.errors import SettingsError
    from dispatcher.model.phase import Phase
    from dispatcher.parsing.nearest import nearest
    from dispatcher.rendering.samples import sample_event
    from dispatcher.runtime.wiring import make_planner, open_channels

    try:
        wanted = Phase.parse(phase)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not wanted.terminal:
        raise typer.BadParameter(f"{wanted} is not a terminal phase: use SUCCEEDED, FAILED, ABORTED or TIMED_OUT")
    settings = load(config)
    channels = open_channels(settings)
    if channel not in channels and to not in settings.rules.recipients:
        hint = nearest(channel, channels)
        raise SettingsError(f"no such channel is configured: add channels.{channel} to the settings; {hint}")
    event = sample_event(wanted).model_copy(update={"occurred_at": SystemClock().now()})
    try:
        target = make_planner(settings, channels).target(channel, to)
        if target.channel != channel:
            write_line(f"{channel} doesn't serve {to}: sending it through {target.channel}")
        message = _message(target, event, _content(settings, target, event))
        receipt = asyncio.run(_send(channels[target.channel], message))
    except ChannelError as error:
        match error:
            case Later():
                result = "not accepted now (a delivery would be retried)"
            case InDoubt():
                result = "in doubt: it may have arrived (a delivery would be retried)"
            case UnknownRecipient():
                result = "unknown recipient (a delivery would go to the channel's fallback, or be dead)"
            case _:
                result = "refused (a delivery would be dead)"
        write_line(f"{result}: {error.reason}", err=True)
        if error.answer is not None:
            write_line(f"the provider answered {error.answer.status} {error.answer.text}".rstrip(), err=True)
        raise typer.Exit(1) from None
    write_line(
        f"sent: {target.channel} accepted it, and answered {receipt.answer.status} {receipt.answer.text}".rstrip()
    )
    for name, value in receipt.reference.items():
        write_line(f"  {name}: {value}")


def _content(settings: Settings, target: Target, event: Event) -> Content:
    """Render the message's content. Raises DispatcherError if the content does not say that the message is a test."""
    import orjson

    from dispatcher.errors import DispatcherError
    from dispatcher.rendering.renderer import TEST_MARK
    from dispatcher.runtime.wiring import make_renderer

    content = make_renderer(settings).render(target.channel, event, recipient=target.recipient, test=True)
    if TEST_MARK.strip() not in orjson.dumps(content).decode():
        raise DispatcherError(
            f"the {target.channel} templates use neither `what` nor `test`: the test would look like a real message"
        )
    return content


def _message(target: Target, event: Event, content: Content) -> Message:
    """Create the message. Each test gets a new key, because PagerDuty merges messages with the same key."""
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
