"""Messages a second to Slack and PagerDuty through the dispatcher, from event to settled delivery, beside who else sends them.

The rivals: slack-sdk over one shared session and pdpyras with a session a thread, both with ready-made bodies and as many
requests at once; and Debian's Alertmanager, with an alert for each event. All run on one core, the API's server on another.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import aiohttp
from slack_sdk.web.async_client import AsyncWebClient

from bench import alertmanager
from bench.figures import Figure, Goal, Missing, interleaved
from bench.providers import Api, Manner, Provider, providing
from bench.sides import apart, by_hands, checked, compared
from bench.storm import PROJECTS, Ran, carry
from dispatcher.model.phase import Phase
from dispatcher.rendering import Renderer
from dispatcher.rendering.renderer import sample_event
from dispatcher.runtime import event_loop

MESSAGES = 1_500
AT_ONCE = 50
TAKES = 0.05
KEY = "0123456789abcdef0123456789abcdef"
GOALS: Mapping[tuple[str, float, str], float] = {
    ("Slack", 0, "slack-sdk"): 0.7,
    ("Slack", 0, "Alertmanager"): 1.4,
    ("Slack", TAKES, "slack-sdk"): 0.9,
    ("PagerDuty", 0, "pdpyras"): 0.85,
    ("PagerDuty", TAKES, "pdpyras"): 0.9,
}


def figures(rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
    count = 200 if smoke else MESSAGES
    for takes in (0, TAKES):
        yield from _beside(rounds, count, takes, "Slack", "slack-sdk", _slack, _through_slack_sdk, _as_slack)
        yield from _beside(rounds, count, takes, "PagerDuty", "pdpyras", _pagerduty, _through_pdpyras, _as_pagerduty)


def _beside(
    rounds: int,
    count: int,
    takes: float,
    path: str,
    library: str,
    section: Callable[[int], tuple[str, Mapping[str, Any], str]],
    bare: Callable[[int, int], Ran],
    receiver: Callable[[int], Mapping[str, Any]],
) -> Iterator[Figure | Missing]:
    with providing(Api, Manner(takes=takes)) as api:
        sides = {"ours": partial(_ours, count, api, section), library: partial(_bare, count, api, bare)}
        if alertmanager.installed():
            sides["Alertmanager"] = partial(alertmanager.carry, count, receiver(api.port), api)
        found = interleaved(rounds, sides)
    work = f"{takes * 1000:g} ms, {AT_ONCE} at once"
    yield from alertmanager.missing(path, work)
    for baseline in [name for name in found if name != "ours"]:
        aim = GOALS.get((path, takes, baseline))
        goal = Goal("at least", aim) if aim is not None else None
        yield from compared(path, work, baseline, found["ours"], found[baseline], goal)


def _ours(count: int, api: Provider, section: Callable[[int], tuple[str, Mapping[str, Any], str]]) -> Ran:
    return checked(api, count, lambda: apart(carry, count, *section(api.port)))


def _bare(count: int, api: Provider, through: Callable[[int, int], Ran]) -> Ran:
    return checked(api, count, lambda: apart(through, count, api.port))


def _slack(port: int) -> tuple[str, Mapping[str, Any], str]:
    section = {
        "token": "xoxb-bench",
        "api_url": f"http://127.0.0.1:{port}/api/",
        "concurrency": AT_ONCE,
        "rate": "none",  # its real pace is Slack's, not ours to beat
    }
    return "slack", section, "#bench-{}"


def _pagerduty(port: int) -> tuple[str, Mapping[str, Any], str]:
    section = {
        "events_url": f"http://127.0.0.1:{port}",
        "services": {f"bench-{project}": {"routing_key": KEY} for project in range(PROJECTS)},
        "concurrency": AT_ONCE,
        "connections": AT_ONCE,
        "rate": "none",
    }
    return "pagerduty", section, "bench-{}"


def _as_slack(port: int) -> Mapping[str, Any]:
    told = {"api_url": f"http://127.0.0.1:{port}/services/bench", "channel": "#bench"}
    return {"slack_configs": [told]}


def _as_pagerduty(port: int) -> Mapping[str, Any]:
    told = {"url": f"http://127.0.0.1:{port}/v2/enqueue", "routing_key": KEY}
    return {"pagerduty_configs": [told]}


def _through_slack_sdk(count: int, port: int) -> Ran:
    content = Renderer().render("slack", sample_event(Phase.FAILED))
    bodies = [
        {
            "channel": f"#bench-{number % PROJECTS}",
            **content,
            "metadata": {"event_type": "notification_delivery", "event_payload": {"key": f"{number:032}"}},
        }
        for number in range(count)
    ]
    return event_loop.run(_over_one_session(bodies, port))


async def _over_one_session(bodies: list[dict[str, Any]], port: int) -> Ran:
    async with aiohttp.ClientSession() as session:
        client = AsyncWebClient("xoxb-bench", base_url=f"http://127.0.0.1:{port}/api/", session=session)
        return await by_hands(AT_ONCE, bodies, lambda body: client.api_call("chat.postMessage", json=body))


def _through_pdpyras(count: int, port: int) -> Ran:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is deprecated
        import pdpyras  # noqa: PLC0415

    content = Renderer().render("pagerduty", sample_event(Phase.FAILED))
    bodies = [{**content, "dedup_key": f"{number:032}"} for number in range(count)]
    own = threading.local()

    def post(body: dict[str, Any]) -> None:
        if not hasattr(own, "session"):
            own.session = pdpyras.EventsAPISession(KEY)
            own.session.url = f"http://127.0.0.1:{port}"
        own.session.post("/v2/enqueue", json=body)

    return event_loop.run(_on_threads(bodies, post))


async def _on_threads(bodies: list[dict[str, Any]], post: Callable[[dict[str, Any]], None]) -> Ran:
    running = asyncio.get_running_loop()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return await by_hands(AT_ONCE, bodies, lambda body: running.run_in_executor(threads, post, body))
