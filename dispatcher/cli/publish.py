"""`dispatcher publish`: publishes test events to Kafka or to the HTTP intake, in Flyte's or the dispatcher's format."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from dispatcher.cli._choices import ALL_PHASES, FORMATS
from dispatcher.cli._input import opened
from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import console, number_text, write_json, write_line

if TYPE_CHECKING:
    from dispatcher.config.settings import Settings
    from dispatcher.flyte.encode import EncodedMessage, Format
    from dispatcher.model.event import Event

MAX_PRINTED = 20
"""For at most this many executions, each message is printed. For more executions, a progress bar is shown instead."""
MAX_IN_FLIGHT = 500
"""Maximum number of executions that are published concurrently."""


class Destination(StrEnum):
    """Where the command publishes the events: Kafka, or the HTTP intake."""

    KAFKA = "kafka"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one message."""

    at: str
    """Its place in Kafka, such as `flyte-cloudevents/0@41` (topic, partition, offset), or the URL of the HTTP intake."""
    answer: Mapping[str, Any] | None = None
    """The HTTP intake's answer; None for Kafka."""

    def __str__(self) -> str:
        if self.answer is None:
            return self.at
        reason = f": {self.answer['reason']}" if self.answer["status"] == "rejected" else ""
        return f"{self.at}: {self.answer['status']}{reason}"


Publish = Callable[["EncodedMessage"], Awaitable[Published]]
"""A function that publishes one message."""


def publish(
    config: Config = None,
    to: Annotated[Destination, typer.Option(help="Publish to Kafka, or to the HTTP intake.")] = Destination.HTTP,
    form: Annotated[
        str,
        typer.Option("--format", help="The events' format; native is the dispatcher's own.", metavar=FORMATS),
    ] = "native",
    phase: Annotated[str, typer.Option(help="The phase that the execution enters.", metavar=ALL_PHASES)] = "FAILED",
    project: Annotated[str, typer.Option(help="The execution's project.")] = "flytesnacks",
    domain: Annotated[str, typer.Option(help="The execution's domain.")] = "development",
    name: Annotated[str | None, typer.Option(help="The execution's name.", show_default="a new one")] = None,
    launch_plan: Annotated[
        str | None, typer.Option(help="The execution's launch plan: NAME or NAME@VERSION.", show_default=False)
    ] = None,
    error: Annotated[str | None, typer.Option(help="The execution's error message.", show_default=False)] = None,
    principal: Annotated[str, typer.Option(help="Who started the execution.", show_default=False)] = "",
    label: Annotated[list[str] | None, typer.Option(help="A label as KEY=VALUE. Can be repeated.")] = None,
    lifecycle: Annotated[
        bool, typer.Option("--lifecycle", help="Also publish the earlier phases, a node event and a task event.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="Number of executions.")] = 1,
    rate: Annotated[float, typer.Option(min=0, help="Executions per second; 0 for no limit.")] = 0,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Publish the events in this file instead, one JSON document per line; - is standard input.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Kafka's HOST:PORT, instead of the one in the settings.", show_default=False)
    ] = None,
    topic: Annotated[
        str | None, typer.Option(help="The Kafka topic.", show_default="the first in the settings")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="URL of the HTTP intake.", show_default="http.listen of the settings")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish test events. Prints where each event was published, and what the HTTP intake answered."""
    import asyncio

    from dispatcher.config.settings import load

    settings = load(config)
    if file is not None:
        messages, total = _from_file(opened(file)), None
    else:
        event = _event(phase, project, domain, name, launch_plan, error, principal, label or [])
        messages, total = _executions(event, _format(form), lifecycle=lifecycle, count=count), count
    publisher = _to_kafka(settings, bootstrap_servers, topic) if to is Destination.KAFKA else _to_http(settings, url)
    interval = timedelta(seconds=1 / rate) if rate else timedelta()
    published: list[dict[str, Any]] = []

    def note(message: EncodedMessage, result: Published) -> None:
        published.append({"message": message.summary, **asdict(result)})

    printed = note if as_json else _write_each if total is None or total <= MAX_PRINTED else None
    number = asyncio.run(_publish_all(messages, publisher, printed, interval=interval, total=total))
    if as_json:
        write_json({"messages": published})
    else:
        write_line(f"published {number_text(number, 'message')}")


def _write_each(message: EncodedMessage, result: Published) -> None:
    write_line(f"{result}  {message.summary}")


def _format(form: str) -> Format:
    from dispatcher.flyte.encode import Format

    try:
        return Format(form)
    except ValueError:
        raise typer.BadParameter(f"--format is one of {', '.join(Format)}") from None


def _event(
    phase: str,
    project: str,
    domain: str,
    name: str | None,
    launch_plan: str | None,
    error: str | None,
    principal: str,
    labels: list[str],
) -> Event:
    from pydantic import ValidationError

    from dispatcher.clock import SystemClock
    from dispatcher.model.event import Event
    from dispatcher.parsing.validation_errors import first_problem

    fields = {
        "execution": {"project": project, "domain": domain, "name": name or f"f{secrets.token_hex(9)}"},
        "phase": phase,
        "occurred_at": SystemClock().now(),
        "principal": principal,
        "labels": dict(_pair(label) for label in labels),
    }
    if launch_plan is not None:
        plan, _, version = launch_plan.partition("@")
        fields["launch_plan"] = {"project": project, "domain": domain, "name": plan, "version": version}
    if error is not None:
        fields["error"] = {"code": "USER:Unknown", "message": error, "kind": "USER"}
    try:
        return Event.model_validate(fields)
    except ValidationError as problem:
        raise typer.BadParameter(first_problem(problem)) from None


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"--label wants KEY=VALUE, not {label!r}")
    return key, value


def _executions(event: Event, form: Format, *, lifecycle: bool, count: int) -> Iterator[list[EncodedMessage]]:
    """Yield the messages of each of `count` executions. If `count` is above 1, each name ends with a number."""
    from dispatcher.flyte.encode import write, write_lifecycle

    for number in range(count):
        one = event
        if count > 1:
            execution = event.execution.model_copy(update={"name": f"{event.execution.name}-{number + 1}"})
            one = event.model_copy(update={"execution": execution})
        yield list(write_lifecycle(one, form)) if lifecycle and one.phase.terminal else [write(one, form)]


def _from_file(file: AbstractContextManager[BinaryIO]) -> Iterator[list[EncodedMessage]]:
    from dispatcher.flyte.encode import EncodedMessage
    from dispatcher.flyte.event_files import read_messages

    with file as lines:
        for number, (headers, value) in enumerate(read_messages(lines), start=1):
            key = dict(headers).get("ce_id", b"")
            yield [EncodedMessage(key=key, headers=headers, value=value, summary=f"event {number}")]


async def _publish_all(
    executions: Iterator[list[EncodedMessage]],
    publisher: AbstractAsyncContextManager[Publish],
    note: Callable[[EncodedMessage, Published], None] | None,
    *,
    interval: timedelta,
    total: int | None,
) -> int:
    """Publish the messages, and return their number. `note` is called for each; without it, a progress bar is shown."""
    import asyncio

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from dispatcher.clock import SystemClock

    clock = SystemClock()
    columns = (TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    number = 0
    slots = asyncio.Semaphore(MAX_IN_FLIGHT)
    with Progress(*columns, console=console(), transient=True, disable=note is not None) as progress:
        bar = progress.add_task("publishing", total=total)
        async with publisher as send, asyncio.TaskGroup() as group:

            async def publish_execution(execution: list[EncodedMessage]) -> None:
                nonlocal number
                for message in execution:
                    result = await send(message)
                    number += 1
                    if note is not None:
                        note(message, result)
                progress.advance(bar)
                slots.release()

            start = clock.now()
            for index, execution in enumerate(executions):
                await clock.sleep(start + interval * index - clock.now())
                await slots.acquire()
                group.create_task(publish_execution(execution))
    return number


@asynccontextmanager
async def _to_kafka(settings: Settings, bootstrap_servers: str | None, topic: str | None) -> AsyncIterator[Publish]:
    from dispatcher.errors import SettingsError
    from dispatcher.intake.kafka.config import KafkaConfig
    from dispatcher.intake.kafka.publisher import KafkaPublisher

    config = settings.kafka
    if bootstrap_servers is not None:
        config = (config or KafkaConfig(bootstrap_servers=bootstrap_servers)).model_copy(
            update={"bootstrap_servers": bootstrap_servers}
        )
    if config is None:
        raise SettingsError("no Kafka to publish to: give --bootstrap-servers, or --config with a kafka section")
    target = topic or config.topics[0]
    async with KafkaPublisher(config) as publisher:

        async def send(message: EncodedMessage) -> Published:
            return Published(await publisher.send(target, message.value, key=message.key, headers=message.headers))

        yield send


@asynccontextmanager
async def _to_http(settings: Settings, url: str | None) -> AsyncIterator[Publish]:
    import aiohttp

    from channels.common.http import request_problem
    from channels.common.proxy import proxy_for
    from dispatcher.errors import DispatcherError
    from dispatcher.web.config import HttpConfig, Scope

    http = settings.http or HttpConfig()
    events_url = (url or f"{'https' if http.tls else 'http'}://{http.listen}").rstrip("/").removesuffix(
        "/events"
    ) + "/events"
    token = next((caller.reveal() for caller in http.callers() if Scope.PUBLISH in caller.scopes), None)
    always = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=always) as session:

        async def send(message: EncodedMessage) -> Published:
            headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
            try:
                request = session.post(events_url, data=message.value, headers=headers, proxy=proxy_for(events_url))
                async with request as response:
                    is_json = response.content_type == "application/json"
                    answer = await response.json() if is_json else {"reason": await response.text()}
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise DispatcherError(f"{events_url}: {request_problem(error)}") from None
            if response.status >= 300:
                raise DispatcherError(f"{events_url}: {response.status}: {answer.get('reason', answer)}")
            return Published(events_url, answer)

        yield send
