"""CPU per message, from an event to the content for the channel, compared with bare Jinja and the standard library.

    python -m bench.render [--messages 300] [--rounds 9]

Each message is rendered from a new event, so that its cost includes the work that messages of one event share, such as
parsing the error.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime
from functools import partial
from itertools import count
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader

from bench.figures import Figure, Goal, as_markdown, interleaved
from channels.contract import Message
from channels.email.mime import compose
from channels.registry import CHANNEL_TYPES
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.rendering.context import context_of
from dispatcher.rendering.folders import MAIL_PARTS, built_in_folder
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event

SENDER = "Flyte <flyte@example.com>"


def mail(content: Any) -> bytes:
    return compose(Message(key="k" * 32, recipients=("a@example.com",), content=content, created_at=HAPPENED), SENDER)


SAMPLE = sample_event(Phase.FAILED)
HAPPENED = SAMPLE.occurred_at
NUMBERS = count()


def fresh() -> Event:
    """A new event, for which nothing is cached."""
    error = (
        SAMPLE.error.model_copy(update={"message": f"{SAMPLE.error.message} {next(NUMBERS)}"}) if SAMPLE.error else None
    )
    return SAMPLE.model_copy(update={"error": error})


def kinds() -> dict[str, Callable[[], Any]]:
    renderer = Renderer(CHANNEL_TYPES, console_url="https://flyte.example.com/console")
    plain, html = (
        Environment(
            loader=FileSystemLoader(built_in_folder()), autoescape=escaped, trim_blocks=True, lstrip_blocks=True
        )
        for escaped in (False, True)
    )
    for environment in (plain, html):
        environment.filters["cut"] = lambda text, limit: text[:limit]
    parts = [(html if part == "html" else plain).get_template(name) for part, name in MAIL_PARTS.items()]
    variables = context_of(SAMPLE, "").variables()
    content = renderer.render("email", SAMPLE)

    def three() -> None:
        event = fresh()
        mail(renderer.render("email", event))
        orjson.dumps(renderer.render("slack", event))
        orjson.dumps(renderer.render("pagerduty", event))

    def library() -> bytes:
        message = EmailMessage()
        headers(message)
        message.set_content(str(content["text"]))
        message.add_alternative(str(content["html"]), subtype="html")
        return message.as_bytes()

    def compat32() -> bytes:
        message = MIMEMultipart("alternative")
        headers(message)
        message.attach(MIMEText(str(content["text"]), "plain", "utf-8"))
        message.attach(MIMEText(str(content["html"]), "html", "utf-8"))
        return message.as_bytes()

    def headers(message: Any) -> None:
        message["Subject"], message["From"], message["To"] = content["subject"], SENDER, "a@example.com"
        message["Date"], message["Message-ID"] = format_datetime(HAPPENED), "<k@example.com>"

    return {
        "an event (the bench's own)": fresh,
        "template variables": lambda: context_of(fresh(), ""),
        "slack": lambda: orjson.dumps(renderer.render("slack", fresh())),
        "pagerduty": lambda: orjson.dumps(renderer.render("pagerduty", fresh())),
        "mail, rendered": lambda: renderer.render("email", fresh()),
        "mail, its bytes": lambda: mail(content),
        "mail and its bytes": lambda: mail(renderer.render("email", fresh())),
        "all three of an event": three,
        "Jinja alone: the mail's parts": lambda: [part.render(variables) for part in parts],
        "EmailMessage, its bytes": library,
        "compat32, its bytes": compat32,
    }


WORK = {
    "template variables": None,
    "slack": Goal("at most", 150, of="value"),
    "pagerduty": Goal("at most", 150, of="value"),
    "mail, rendered": None,
    "mail, its bytes": None,
    "mail and its bytes": Goal("at most", 350, of="value"),
    "all three of an event": None,
}
"""The dispatcher's work, and its goal in microseconds of CPU."""
BASELINES = {"mail, its bytes": "compat32, its bytes"}
"""The baseline of a work; for all others it is Jinja alone, which renders the mail's parts."""
JINJA = "Jinja alone: the mail's parts"
NEW_EVENT = "an event (the bench's own)"
WITHOUT_NEW_EVENT = {NEW_EVENT, JINJA, "mail, its bytes", "EmailMessage, its bytes", "compat32, its bytes"}


def measured(rounds: int, messages: int) -> dict[str, list[float]]:
    """Microseconds of CPU per message, by kind of work, without the cost of creating the event."""
    works = kinds()
    for work in works.values():
        work()  # compiles the templates, as a service does once
    gc.freeze()
    costs = interleaved(rounds, {name: partial(_cpu, work, messages) for name, work in works.items()})
    gc.unfreeze()
    event_cost = statistics.median(costs[NEW_EVENT])
    return {
        name: [one - event_cost * (name not in WITHOUT_NEW_EVENT) for one in times] for name, times in costs.items()
    }


def _cpu(work: Callable[[], Any], messages: int) -> float:
    began = time.process_time()
    for _ in range(messages):
        work()
    return (time.process_time() - began) / messages * 1e6


def figures(rounds: int, *, smoke: bool, messages: int = 300) -> Iterable[Figure]:
    """The cost of each kind of work, compared with bare Jinja or the standard library."""
    costs = measured(max(rounds, 1), 5 if smoke else messages)
    for work, goal in WORK.items():
        baseline = BASELINES.get(work, JINJA)
        yield Figure(
            path="render",
            work=work,
            baseline=baseline,
            ours=costs[work],
            theirs=costs[baseline],
            unit=" us",
            goal=goal,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(as_markdown(figures(options.rounds, smoke=False, messages=options.messages)))


if __name__ == "__main__":
    main()
