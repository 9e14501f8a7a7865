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
from channels.email import compose
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.rendering import Renderer
from dispatcher.rendering.context import context_of
from dispatcher.rendering.renderer import MAIL_PARTS, built_in_folder, sample_event

SENDER = "Flyte <flyte@example.com>"


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


WORK = {
    "what templates see of it": None,
    "slack": Goal("at most", 150, of="value"),
    "pagerduty": Goal("at most", 150, of="value"),
    "mail, rendered": None,
    "mail, its bytes": None,
    "mail and its bytes": Goal("at most", 350, of="value"),
    "all three of an event": None,
}
"""What is ours, and how many microseconds of CPU it may take."""
BASELINES = {"mail, its bytes": "compat32, its bytes"}
"""Who does the same; where nobody does, Jinja alone renders the mail's parts."""
JINJA = "Jinja alone: the mail's parts"
OWN = "an event (the bench's own)"
NOTHING_FRESH = {OWN, JINJA, "mail, its bytes", "EmailMessage, its bytes", "compat32, its bytes"}


def measured(rounds: int, messages: int) -> dict[str, list[float]]:
    """Microseconds of CPU a message, by what was made of it, without the bench's own."""
    made = kinds()
    for make in made.values():
        make()  # compiles the templates, as a service does once
    gc.freeze()
    took = interleaved(rounds, {name: partial(_cpu, make, messages) for name, make in made.items()})
    gc.unfreeze()
    own = statistics.median(took[OWN])
    return {name: [one - own * (name not in NOTHING_FRESH) for one in times] for name, times in took.items()}


def _cpu(make: Callable[[], Any], messages: int) -> float:
    began = time.process_time()
    for _ in range(messages):
        make()
    return (time.process_time() - began) / messages * 1e6


def figures(rounds: int, *, smoke: bool, messages: int = 300) -> Iterable[Figure]:
    """What each message costs, beside the engine or the standard library."""
    took = measured(max(rounds, 1), 5 if smoke else messages)
    for work, goal in WORK.items():
        baseline = BASELINES.get(work, JINJA)
        yield Figure(
            path="render",
            work=work,
            baseline=baseline,
            ours=took[work],
            theirs=took[baseline],
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
