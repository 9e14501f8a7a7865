"""`dispatcher send-test`: sends one real message, marked as a test, through a configured channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._choices import CHANNELS
from dispatcher.cli._events import EventFile, OfExecution, Resolved, SamplePhase, chosen_event
from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import write_json, write_line

if TYPE_CHECKING:
    from dispatcher.send_test import SendTestResult


def send_test(
    channel: Annotated[
        str, typer.Option(help="The channel's name in the settings.", metavar=CHANNELS, show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", help="The recipient, written as in a rule.", show_default=False)],
    phase: SamplePhase = None,
    resolved: Resolved = False,
    event: EventFile = None,
    execution: OfExecution = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Send one real message, marked as a test. Prints the provider's answer.

    The message is about a sample execution, the event in a file, or a real execution. The command uses the templates,
    recipients and secrets of the settings. It makes one attempt, which the ledger does not record. PagerDuty opens an
    incident for the message. Exit status 1 if the provider did not accept the message.
    """
    import asyncio
    from dataclasses import asdict

    from dispatcher.clock import SystemClock
    from dispatcher.config.settings import load
    from dispatcher.errors import SettingsError
    from dispatcher.parsing.nearest import nearest
    from dispatcher.runtime.wiring import opened_send_test
    from dispatcher.workbench.sample import sample_outage

    settings = load(config)
    if channel not in settings.channel_sections:
        hint = nearest(channel, settings.channel_sections)
        raise SettingsError(f"no such channel is configured: add channels.{channel} to the settings; {hint}")
    clock = SystemClock()
    about = chosen_event(settings, event, execution, phase, resolved=resolved, finished=clock.now())
    outage = sample_outage(about) if resolved else None

    async def send() -> SendTestResult:
        async with opened_send_test(settings, clock) as test:
            return await test.send(channel, to, about, outage=outage)

    result = asyncio.run(send())
    if as_json:
        write_json(asdict(result))
    else:
        _write(result, channel, to)
    if not result.accepted:
        raise typer.Exit(1)


def _write(result: SendTestResult, channel: str, to: str) -> None:
    if result.channel != channel:
        write_line(f"{channel} doesn't serve {to}: sending it through {result.channel}")
    if not result.accepted:
        write_line(result.message, err=True)
        if result.answer is not None:
            write_line(f"the provider answered {result.answer.status} {result.answer.text}".rstrip(), err=True)
        return
    write_line(f"sent: {result.message}")
    for name, value in result.reference.items():
        write_line(f"  {name}: {value}")
