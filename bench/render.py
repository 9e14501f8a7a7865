"""CPU a message, from an event to what is handed to the channel, beside the engine's and the standard library's own cost.

    python -m bench.render [--messages 300] [--rounds 9]

Each message is made from an event never seen before, so that it pays for reading the error and for all else
that messages of one event share.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime
from itertools import count
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader

from channels.contract import Message
from channels.email import compose
from dispatcher.event import Event
from dispatcher.phase import Phase
from dispatcher.rendering import Renderer
from dispatcher.rendering.context import context_of
from dispatcher.rendering.renderer import MAIL_PARTS, built_in_folder, sample_event

SENDER = "Flyte <flyte@example.com>"
TARGETS = {"slack": 150, "pagerduty": 150, "mail and its bytes": 350}
"""Microseconds of CPU."""


def mail(content: Any) -> bytes:
    return compose(Message(key="k" * 32, recipients=("a@example.com",), content=content, created_at=HAPPENED), SENDER)


SAMPLE = sample_event(Phase.FAILED)
HAPPENED = SAMPLE.occurred_at
NUMBERS = count()


def fresh() -> Event:
    """An event that nothing is remembered of."""
    error = (
        SAMPLE.error.model_copy(update={"message": f"{SAMPLE.error.message} {next(NUMBERS)}"}) if SAMPLE.error else None
    )
    return SAMPLE.model_copy(update={"error": error})


def kinds() -> dict[str, Callable[[], Any]]:
    renderer = Renderer(console_url="https://flyte.example.com/console")
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
        "what templates see of it": lambda: context_of(fresh(), ""),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    made = kinds()
    took: dict[str, list[float]] = {name: [] for name in made}
    for make in made.values():
        make()  # compiles the templates, as a service does once
    gc.freeze()
    for _ in range(options.rounds):
        for name, make in made.items():
            began = time.process_time()
            for _ in range(options.messages):
                make()
            took[name].append((time.process_time() - began) / options.messages * 1e6)
    own = statistics.median(took["an event (the bench's own)"])
    medians = {name: statistics.median(times) - own * (name not in NOTHING_FRESH) for name, times in took.items()}
    base = medians["Jinja alone: the mail's parts"]
    print(f"{'CPU, us (medians of ' + str(options.rounds) + ' rounds)':34} {'':>7} {'/ Jinja':>8}  target")
    for name, median in medians.items():
        if name != "an event (the bench's own)":
            print(f"{name:34} {median:7.0f} {median / base:8.2f}  {TARGETS.get(name, '')}")


NOTHING_FRESH = {
    "an event (the bench's own)",
    "mail, its bytes",
    "Jinja alone: the mail's parts",
    "EmailMessage, its bytes",
    "compat32, its bytes",
}


if __name__ == "__main__":
    main()
