"""Messages per second to Slack and PagerDuty, from event to settled delivery, compared with other programs.

The baselines: slack-sdk over one shared session and pdpyras with one session per thread, both with prepared bodies and
the same concurrency; and Debian's Alertmanager with one alert per event. Each runs on one core, the API server on another.
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
from bench.burst import PROJECTS, RunResult, carry
from bench.figures import Figure, Goal, Missing, interleaved
from bench.providers import Api, Provider, ProviderOptions, running_provider
from bench.sides import comparison, in_new_process, run_concurrently, without_loss
from channels.registry import CHANNEL_TYPES
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.runtime import event_loop

MESSAGES = 1_500
CONCURRENCY = 50
DELAY = 0.05
KEY = "0123456789abcdef0123456789abcdef"
# PagerDuty has no goal: a service takes 120 events a minute.
GOALS: Mapping[tuple[str, float, str], float] = {
    ("Slack", 0, "slack-sdk"): 0.7,
    ("Slack", 0, "Alertmanager"): 1.4,
    ("Slack", DELAY, "slack-sdk"): 0.9,
}


def figures(rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
    count = 200 if smoke else MESSAGES
    for delay in (0, DELAY):
        yield from _beside(rounds, count, delay, "Slack", "slack-sdk", _slack, _through_slack_sdk, _as_slack)
        yield from _beside(rounds, count, delay, "PagerDuty", "pdpyras", _pagerduty, _through_pdpyras, _as_pagerduty)


def _beside(
    rounds: int,
    count: int,
    delay: float,
    path: str,
    library: str,
    section: Callable[[int], tuple[str, Mapping[str, Any], str]],
    bare: Callable[[int, int], RunResult],
    receiver: Callable[[int], Mapping[str, Any]],
) -> Iterator[Figure | Missing]:
    with running_provider(Api, ProviderOptions(delay=delay)) as api:
        sides = {"ours": partial(_ours, count, api, section), library: partial(_bare, count, api, bare)}
        if alertmanager.installed():
            sides["Alertmanager"] = partial(alertmanager.carry, count, receiver(api.port), api)
        found = interleaved(rounds, sides)
    work = f"{delay * 1000:g} ms, {CONCURRENCY} at once"
    yield from alertmanager.missing(path, work)
    for baseline in [name for name in found if name != "ours"]:
        aim = GOALS.get((path, delay, baseline))
        goal = Goal("at least", aim) if aim is not None else None
        yield from comparison(path, work, baseline, found["ours"], found[baseline], goal)


def _ours(count: int, api: Provider, section: Callable[[int], tuple[str, Mapping[str, Any], str]]) -> RunResult:
    return without_loss(api, count, lambda: in_new_process(carry, count, *section(api.port)))


def _bare(count: int, api: Provider, through: Callable[[int, int], RunResult]) -> RunResult:
    return without_loss(api, count, lambda: in_new_process(through, count, api.port))


def _slack(port: int) -> tuple[str, Mapping[str, Any], str]:
    section = {
        "token": "xoxb-bench",
        "api_url": f"http://127.0.0.1:{port}/api/",
        "concurrency": CONCURRENCY,
        "rate": "none",  # the default rate is Slack's limit, which is not measured here
    }
    return "slack", section, "#bench-{}"


def _pagerduty(port: int) -> tuple[str, Mapping[str, Any], str]:
    section = {
        "events_url": f"http://127.0.0.1:{port}",
        "services": {f"bench-{project}": {"routing_key": KEY} for project in range(PROJECTS)},
        "concurrency": CONCURRENCY,
        "connections": CONCURRENCY,
        "rate": "none",
    }
    return "pagerduty", section, "bench-{}"


def _as_slack(port: int) -> Mapping[str, Any]:
    return {"slack_configs": [{"api_url": f"http://127.0.0.1:{port}/services/bench", "channel": "#bench"}]}


def _as_pagerduty(port: int) -> Mapping[str, Any]:
    return {"pagerduty_configs": [{"url": f"http://127.0.0.1:{port}/v2/enqueue", "routing_key": KEY}]}


def _through_slack_sdk(count: int, port: int) -> RunResult:
    content = Renderer(CHANNEL_TYPES).render("slack", sample_event(Phase.FAILED))
    bodies = [
        {
            "channel": f"#bench-{number % PROJECTS}",
            **content,
            "metadata": {"event_type": "notification_delivery", "event_payload": {"key": f"{number:032}"}},
        }
        for number in range(count)
    ]
    return event_loop.run(_over_one_session(bodies, port))


async def _over_one_session(bodies: list[dict[str, Any]], port: int) -> RunResult:
    async with aiohttp.ClientSession() as session:
        client = AsyncWebClient("xoxb-bench", base_url=f"http://127.0.0.1:{port}/api/", session=session)
        return await run_concurrently(CONCURRENCY, bodies, lambda body: client.api_call("chat.postMessage", json=body))


def _through_pdpyras(count: int, port: int) -> RunResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pdpyras warns that it is deprecated
        import pdpyras  # noqa: PLC0415

    content = Renderer(CHANNEL_TYPES).render("pagerduty", sample_event(Phase.FAILED))
    bodies = [{**content, "dedup_key": f"{number:032}"} for number in range(count)]
    thread = threading.local()

    def post(body: dict[str, Any]) -> None:
        if not hasattr(thread, "session"):
            thread.session = pdpyras.EventsAPISession(KEY)
            thread.session.url = f"http://127.0.0.1:{port}"
        thread.session.post("/v2/enqueue", json=body)

    return event_loop.run(_on_threads(bodies, post))


async def _on_threads(bodies: list[dict[str, Any]], post: Callable[[dict[str, Any]], None]) -> RunResult:
    running = asyncio.get_running_loop()
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        return await run_concurrently(CONCURRENCY, bodies, lambda body: running.run_in_executor(threads, post, body))
