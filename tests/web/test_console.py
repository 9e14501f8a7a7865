"""The console, as people use it: in a real browser, by keyboard, without a script, on a phone; and looked at."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
import structlog
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from dispatcher.ledger import DeliveryFilter, EventFilter
from dispatcher.model.delivery import State
from dispatcher.model.phase import Phase
from tests.support.console import DEAD, Site, a_busy_day, site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"
TOKENS = [
    {"name": "dashboard", "token": "reader-0123456789abcdef", "scopes": ["read"]},
    {"name": "oncall", "token": "operator-0123456789abcdef", "scopes": ["read", "operate"]},
]
COLOURS = ["color-contrast", "link-in-text-block"]
"""axe's rules of colours, which are all that differs from scheme to scheme."""
SCHEMES: Mapping[Literal["light", "dark"], dict[str, Any]] = {
    "light": {"resultTypes": ["violations"]},
    "dark": {"resultTypes": ["violations"], "runOnly": COLOURS},
}
needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as made:
        yield made


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        await opened.close()


@pytest.fixture
async def page(browser: Browser, place: Site) -> AsyncIterator[Page]:
    opened = await browser.new_page(viewport={"width": 1200, "height": 860}, color_scheme="light")
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    yield opened
    assert wrong == []


async def html(place: Site, path: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{place.url}{path}", headers=headers, allow_redirects=False) as answer,
    ):
        assert answer.status == status, await answer.text()
        return await answer.text()


async def some_pages(place: Site) -> Mapping[str, str]:
    """A page of each kind, by name."""
    queries = place.ledger.queries
    dead = (await queries.deliveries(DeliveryFilter(states=frozenset({State.DEAD})), limit=1)).entries[0]
    mail = (await queries.deliveries(DeliveryFilter(channel="email", states=frozenset({State.SENT})), limit=1)).entries[
        0
    ]
    failed = (await queries.events(EventFilter(phase="FAILED", verdict="matched"), limit=3)).entries[-1]
    refused = (await queries.rejected(limit=1)).entries[0]
    return {
        "overview": "/console/",
        "deliveries": "/console/deliveries?state=dead",
        "delivery": f"/console/deliveries/{mail.key}",
        "dead": f"/console/deliveries/{dead.key}",
        "executions": "/console/executions",
        "execution": f"/console/executions/{failed.project}/{failed.domain}/{failed.name}",
        "redrive": "/console/redrive?channel=slack",
        "rejected": "/console/rejected",
        "message": f"/console/rejected/{refused.id}",
        "search": "/console/search?q=nobody",
        "nothing": "/console/deliveries?recipient=nobody",
    }


@needs_a_browser
@pytest.mark.timeout(240)
async def test_every_page_passes_axe_in_light_and_dark_and_fits_a_phone(page: Page, place: Site) -> None:
    await a_busy_day(place)
    await page.clock.set_fixed_time(place.clock.now())
    pages = await some_pages(place)
    for name, path in pages.items():
        for scheme, looked_for in SCHEMES.items():
            await page.emulate_media(color_scheme=scheme)
            await page.goto(place.url + path)
            await page.locator("main details:not([open]) > summary").evaluate_all(
                "all => all.forEach(one => one.click())"
            )
            results = await Axe().run(page, options=looked_for)
            assert results.violations_count == 0, f"{name}, {scheme}: {results.generate_report()}"
        await page.set_viewport_size({"width": 360, "height": 740})
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, f"{name} is {wide} wide"
        await page.set_viewport_size({"width": 1200, "height": 860})


async def test_what_is_older_is_a_link_away(place: Site) -> None:
    for name in ("one", "two", "three"):
        await place.ends(name, told=["email"])
    for listed in ("deliveries", "executions"):
        path, seen = f"/console/{listed}?limit=1", []
        for _ in range(3):
            shown = await html(place, path)
            seen += [name for name in ("one", "two", "three") if f"production/{name}" in shown]
            older = re.search(rf'href="(/console/{listed}[^"]*after=[^"]+)"', shown)
            path = unescape(older[1]) if older else path
        assert sorted(seen) == ["one", "three", "two"], listed


@needs_a_browser
async def test_the_console_is_pictured(page: Page, place: Site) -> None:
    await a_busy_day(place)
    await page.clock.set_fixed_time(place.clock.now())
    pages = await some_pages(place)
    shots: tuple[tuple[str, Literal["light", "dark"], int], ...] = (
        ("overview", "light", 1200),
        ("deliveries", "dark", 1200),
        ("delivery", "light", 1200),
        ("execution", "light", 1200),
        ("redrive", "light", 1200),
        ("overview", "dark", 360),
    )
    for name, scheme, width in shots:
        await page.set_viewport_size({"width": width, "height": 860 if width > 360 else 740})
        await page.emulate_media(color_scheme=scheme)
        await page.goto(place.url + pages[name])
        await expect(page.locator("h1")).to_be_visible()
        if name == "overview":
            await expect(page.locator("#live")).to_have_text("live")
        taken = await page.screenshot()
        file = PICTURES / f"console-{name}{'-phone' if width == 360 else ''}.png"
        if os.environ.get("REWRITE_SNAPSHOTS"):
            file.write_bytes(taken)
        assert file.stat().st_size < 200_000


@needs_a_browser
async def test_what_happens_appears_without_a_reload(page: Page, place: Site) -> None:
    await page.goto(f"{place.url}/console/")
    await expect(page.get_by_text("Nothing has happened yet.")).to_be_visible()
    await expect(page.locator("#live")).to_have_text("live")
    await place.ends(f"e{HOSTILE[:7]}", told=["slack"])
    await expect(page.locator("#happenings li").first).to_contain_text("e<script")
    await place.arrives("slack", DEAD)
    await expect(page.locator("#happenings li").first).to_contain_text("Slack refused: channel_not_found")
    await expect(page.get_by_text("Nothing has happened yet.")).to_have_count(0)
    await page.locator("#happenings li").first.get_by_role("link", name="Slack to").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Slack to #dev-alerts")


@needs_a_browser
async def test_dead_deliveries_are_redriven_by_keyboard_after_a_look(page: Page, place: Site) -> None:
    for name in ("one", "two", "three"):
        await place.ends(name, told=["slack"])
    await place.arrives("slack", DEAD)
    await page.goto(f"{place.url}/console/deliveries?state=dead")
    await page.get_by_role("checkbox", name="All on this page").focus()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("button", name="Redrive 3 selected…")).to_be_visible()
    await page.get_by_role("checkbox", name="Choose Slack").nth(1).press("Space")
    await page.get_by_role("button", name="Redrive 2 selected…").press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Redrive 2 dead deliveries?")
    await expect(page.locator(".reasons")).to_contain_text("2 Slack Slack refused: channel_not_found")
    assert not place.rung  # so far nothing has changed
    with structlog.testing.capture_logs() as said:
        await page.get_by_role("button", name="Redrive 2").press("Enter")
        await expect(page.get_by_role("status")).to_have_text("2 deliveries are due again.")
    assert [(line["by"], line["deliveries"]) for line in said if line["event"] == "redriven"] == [("this machine", 2)]
    waiting = await place.ledger.find(DeliveryFilter(states=frozenset({State.WAITING})), limit=9)
    assert (len(waiting), len(place.rung)) == (2, 1)


@needs_a_browser
async def test_everything_works_without_a_script(browser: Browser, place: Site) -> None:
    await place.ends("one", told=["slack", "email"])
    await place.arrives("slack", DEAD)
    await place.intake.take([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(f"{place.url}/console/")
    await page.get_by_role("link", name="1 dead").click()
    await page.get_by_label("Recipient", exact=True).fill("#DEV-alerts")
    await page.get_by_role("button", name="Search", exact=True).click()
    await page.get_by_role("link", name="Redrive all that fit…").click()
    await expect(page.get_by_text("Those with recipient #DEV-alerts.")).to_be_visible()
    await page.get_by_role("button", name="Redrive 1").click()
    await expect(page.get_by_role("status")).to_have_text("1 delivery is due again.")
    await page.get_by_role("searchbox").fill("one")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="flytesnacks/production/one").click()
    await expect(page.get_by_text("Somebody is to be told")).to_be_visible()
    await page.get_by_role("link", name="Rejected").click()
    await page.get_by_role("link", name="broken JSON").click()
    await page.get_by_role("button", name="Replay").click()
    await expect(page.get_by_role("alert")).to_contain_text("Tried again, and not understood: broken JSON")
    await context.close()


@needs_a_browser
async def test_a_key_is_copied(page: Page, place: Site) -> None:
    await place.ends("one")
    (delivery,) = await place.arrives("email")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.goto(f"{place.url}/console/deliveries/{delivery.key}")
    await page.get_by_role("button", name="Copy the key").click()
    assert await page.evaluate("navigator.clipboard.readText()") == delivery.key


@needs_a_browser
async def test_a_message_is_seen_as_its_reader_sees_it_and_can_do_nothing(page: Page, place: Site) -> None:
    await place.ends("one", told=["email", "slack", "pagerduty", "teams"], error={"message": HOSTILE})
    opened: list[object] = []

    def hear(dialog: object) -> None:
        opened.append(dialog)

    page.on("dialog", hear)
    for filed in await place.ledger.find(DeliveryFilter(), limit=9):
        await page.goto(f"{place.url}/console/deliveries/{filed.delivery.key}")
        seen = page.frame_locator("iframe.seen")
        await expect(seen.locator("body")).to_contain_text("<script>alert(1)</script>")
        assert await seen.locator("script").count() == 0
        assert "train.daily failed" in await page.locator(".headline").inner_text()
    assert opened == []


async def test_what_strangers_wrote_never_becomes_markup(place: Site) -> None:
    await place.ends(
        HOSTILE.replace("/", "|"),
        told=["slack", "email"],
        launch_plan=HOSTILE.replace("/", "|"),
        recipients=[f"#{HOSTILE}"],
        error={"message": f"{HOSTILE}\n{HOSTILE}"},
        labels={HOSTILE: HOSTILE},
        principal=HOSTILE,
    )
    await place.arrives("slack", DEAD)
    body = f'{{"specversion": "{HOSTILE}'.encode()
    await place.intake.take(
        [([("content-type", b"application/cloudevents+json"), (HOSTILE, HOSTILE.encode())], body, HOSTILE)]
    )
    (ended,) = (await place.ledger.queries.events(EventFilter(), limit=2)).entries
    (refused,) = (await place.ledger.queries.rejected(limit=2)).entries
    paths = [
        "/console/",
        "/console/deliveries",
        "/console/executions",
        f"/console/executions/{ended.project}/{ended.domain}/{quoted(ended.name)}",
        "/console/rejected",
        f"/console/rejected/{refused.id}",
        "/console/redrive",
        *(f"/console/deliveries/{filed.delivery.key}" for filed in await place.ledger.find(DeliveryFilter(), limit=9)),
    ]
    asked = f"/console/deliveries?recipient={quoted(HOSTILE)}&since={quoted(HOSTILE)}"
    for path, status in [*((path, 200) for path in paths), (asked, 400), (f"/console/search?q={quoted(HOSTILE)}", 200)]:
        drawn = await html(place, path, status=status)
        assert "<script>alert" not in drawn, path
        assert "<img src=x" not in drawn, path


def quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


async def test_a_message_has_a_policy_of_its_own_under_which_nothing_runs(place: Site) -> None:
    await place.ends("one")
    (filed,) = await place.ledger.find(DeliveryFilter(), limit=2)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{place.url}/console/deliveries/{filed.delivery.key}/html") as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("sandbox; default-src 'none'; style-src 'unsafe-inline'")
        async with session.get(f"{place.url}/console/") as answer:
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
            assert "style=" not in (drawn := await answer.text())
            assert "<style" not in drawn


async def test_who_may_not_is_told_so_and_nothing_changes(tmp_path: Path) -> None:
    async with site(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", tokens=TOKENS) as place:
        await place.ends("one", told=["slack"])
        (dead,) = await place.arrives("slack", DEAD)
        await html(place, "/console/", status=303, headers={"Accept": "text/html"})
        reader = {"Authorization": f"Bearer {TOKENS[0]['token']}"}
        assert "dashboard" in await html(place, "/console/", headers=reader)
        assert "no scope operate" in await html(place, "/console/redrive", status=403, headers=reader)
        async with aiohttp.ClientSession() as session:
            form = {"key": dead.key}
            async with session.post(f"{place.url}/console/redrive", data=form, headers=reader) as answer:
                assert answer.status == 403
            async with session.post(f"{place.url}/console/redrive", data=form) as answer:
                assert answer.status == 401
        (filed,) = await place.ledger.find(DeliveryFilter(), limit=2)
        assert filed.delivery.state is State.DEAD


async def test_a_form_from_elsewhere_changes_nothing(place: Site) -> None:
    await place.ends("one", told=["slack"])
    (dead,) = await place.arrives("slack", DEAD)
    form = {"key": dead.key, "csrf_token": "guessed"}
    async with aiohttp.ClientSession() as session, session.post(f"{place.url}/console/redrive", data=form) as answer:
        assert answer.status == 403
    (filed,) = await place.ledger.find(DeliveryFilter(), limit=2)
    assert filed.delivery.state is State.DEAD


async def test_one_word_finds_what_it_names(place: Site) -> None:
    await place.ends("a7failed", told=["slack"])
    await place.ends("train.daily", Phase.ABORTED, told=["slack"])
    (filed, *_) = await place.ledger.find(DeliveryFilter(execution="a7failed"), limit=2)

    async def goes(text: str) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{place.url}/console/search", params={"q": text}, allow_redirects=False) as answer,
        ):
            return answer.headers.get("Location", "")

    assert await goes("a7failed") == "/console/executions?execution=a7failed"
    assert await goes("flytesnacks/production/a7failed") == "/console/executions/flytesnacks/production/a7failed"
    assert await goes("#DEV-alerts") == "/console/deliveries?recipient=%23DEV-alerts"
    assert await goes(filed.delivery.key[:9]) == f"/console/deliveries/{filed.delivery.key}"
    both = await html(place, "/console/search?q=train.daily")
    assert "Executions named" in both
    assert "Launch plan" in both
    assert "Nothing has that name" in await html(place, "/console/search?q=nobody%00")


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/console/nothing", 404, "There is no such page."),
        ("/console/deliveries/nothing", 404, "There is no such delivery."),
        ("/console/executions/a/b/c", 404, "Nothing is recorded of this execution."),
        ("/console/rejected/x", 404, "There is no such rejected message."),
        ("/console/deliveries?since=soon", 400, "neither a span like 24h"),
        ("/console/deliveries?after=x", 400, 'role="alert"'),
        ("/console/deliveries?limit=x", 400, "limit: "),
        ("/console/executions?phase=RUNNING", 400, "phase: "),
        ("/console/rejected?after=x", 400, "begin with the newest"),
        ("/console/redrive?since=soon", 400, "neither a span like 24h"),
        ("/console/redrive?selected=1", 400, "No delivery was chosen"),
        ("/console/stream?after=x", 400, "no event"),
        ("/console/deliveries", 200, "Nothing has been owed yet."),
        ("/console/executions", 200, "No execution's end has been recorded yet."),
        ("/console/redrive", 200, "Nothing to redrive"),
        ("/console/?range=century", 200, "Last 24 hours"),
    ],
)
async def test_what_cannot_be_shown_is_said_in_words(place: Site, path: str, status: int, says: str) -> None:
    from html import unescape

    assert says in unescape(await html(place, path, status=status))
