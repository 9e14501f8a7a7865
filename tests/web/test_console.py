"""The console in a real browser: by keyboard, without JavaScript, on a phone; accessibility, and the docs' pictures."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import aiohttp
import pytest
import pytest_asyncio
import structlog
from playwright.async_api import Browser, Page, expect

from dispatcher.ledger import Deed, Filter
from dispatcher.model.delivery import State
from dispatcher.model.hold import Quiet
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from dispatcher.rules.silences import test_of as matcher_test
from tests.support.builders import a_delivery, a_digest, a_launch_plan, a_silence, an_event, members_of
from tests.support.chromium import axe_violations, needs_a_browser, opened
from tests.support.console import DEAD, ConsoleServer, add_busy_day, add_replicas, serve_console
from tests.support.ledger_steps import an_action, record_digest, recorded
from tests.support.pictures import check_picture

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"
TOKENS = [
    {"name": "dashboard", "token": "reader-0123456789abcdef", "scopes": ["read"]},
    {"name": "oncall", "token": "operator-0123456789abcdef", "scopes": ["read", "operate"]},
]


pytestmark = pytest.mark.asyncio(loop_scope="module")  # all tests share the browser, whose start takes a second


@pytest_asyncio.fixture(loop_scope="module")
async def console(tmp_path: Path) -> AsyncIterator[ConsoleServer]:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with opened() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, console: ConsoleServer) -> AsyncIterator[Page]:
    page = await browser.new_page(
        viewport={"width": 1200, "height": 860}, color_scheme="light", timezone_id="Europe/Zurich"
    )
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    yield page
    await page.close()
    assert errors == []


async def html(
    console: ConsoleServer, path: str, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{console.url}{path}", headers=headers, allow_redirects=False) as answer,
    ):
        assert answer.status == status, await answer.text()
        return await answer.text()


async def some_pages(console: ConsoleServer) -> Mapping[str, str]:
    """The path of a page of each kind, by name."""
    queries = console.ledger.queries
    dead = (await queries.deliveries(Filter(states=frozenset({State.DEAD})), limit=1)).entries[0]
    mail = (await queries.deliveries(Filter(channel="email", states=frozenset({State.SENT})), limit=1)).entries[0]
    failed = (await queries.events(Filter(phase="FAILED", verdict="matched"), limit=3)).entries[-1]
    rejected = (await queries.rejected(limit=1)).entries[0]
    return {
        "overview": "/console/",
        "deliveries": "/console/deliveries?state=dead",
        "delivery": f"/console/deliveries/{mail.delivery.key}",
        "dead": f"/console/deliveries/{dead.delivery.key}",
        "executions": "/console/executions",
        "causes": "/console/executions/causes",
        "execution": f"/console/executions/{failed.project}/{failed.domain}/{failed.name}",
        "redrive": "/console/redrive?channel=slack",
        "send test": "/console/send-test?channel=email&recipient=dev-team%40example.com",
        "rejected": "/console/rejected",
        "message": f"/console/rejected/{rejected.id}",
        "health": "/console/health",
        "rules": "/console/rules?launch_plan=flytesnacks/production/train.daily",
        "routes": "/console/rules/routes",
        "owners": "/console/rules/owners",
        "digest": f"/console/deliveries/{await a_dead_digest(console)}",
        "held": "/console/deliveries?held=true",
        "held delivery": f"/console/deliveries/{await a_held_delivery(console)}",
        "held execution": "/console/executions/flytesnacks/production/held",
        "silences": "/console/silences",
        "silence": f"/console/silences/{await a_silence_of(console, 'upgrade of the cluster')}",
        "add a silence": f"/console/silences/add?execution={failed.project}/{failed.domain}/{failed.name}",
        "search": "/console/search?q=nobody",
        "no deliveries": "/console/deliveries?recipient=nobody",
    }


async def a_silence_of(console: ConsoleServer, text: str) -> str:
    """Add a silence whose texts are this one. Return its id."""
    now = console.clock.now()
    times: dict[str, Any] = {"starts_at": now, "ends_at": now + timedelta(hours=2), "created_at": now}
    silence = a_silence(
        matcher={"launch_plan": [text], "not": {"phase": ["ABORTED"]}}, author=text, reason=text, **times
    )
    await console.ledger.silences.add(silence, an_action(Deed.SILENCE))
    await console.ledger.silences.follow(silence, matcher_test(silence), now=now)
    return silence.id


async def a_dead_digest(console: ConsoleServer) -> str:
    """Record a digest that could not be sent, with two members. Return its key."""
    now = console.clock.now()
    digest = a_digest(created_at=now, due_at=now, state=State.DEAD, attempt=1)
    digest = digest._replace(reason="Slack refused: is_archived")
    await record_digest(console.ledger, digest, *members_of(digest, 2), now=now)
    return digest.key


async def a_held_delivery(console: ConsoleServer) -> str:
    """Record a delivery that quiet hours hold. Return its key."""
    now, event = console.clock.now(), an_event(name="held", launch_plan=a_launch_plan())
    night = Quiet(now + timedelta(hours=9), "contact night-shift")
    mail = a_delivery(event, to="night-shift@example.com", created_at=now, quiet=night)
    await console.ledger.record([recorded(mail, event=event)], [], now=now)
    return mail.key


async def test_pages_say_what_holds_a_delivery_and_what_tells_of_it(console: ConsoleServer) -> None:
    silence = await a_silence_of(console, "upgrade")
    await console.finish("a1", launch_plan="upgrade")
    execution = await html(console, "/console/executions/flytesnacks/production/a1")
    assert '<p class="verdict not-sent"><strong>2 notifications, held</strong>' in execution
    assert f'href="/console/silences/{silence}">the end of silence {silence} (upgrade)</a>' in execution
    executions = " ".join((await html(console, "/console/executions")).split())
    assert '<span class="badge held">held</span> 2' in executions
    by_silence = await html(console, f"/console/deliveries?held_by={silence}&held=true")
    assert by_silence.count("the end of silence") == 2
    assert await html(console, "/console/deliveries?state=waiting&held=false") != by_silence

    digest = await a_dead_digest(console)
    (member, _) = (await console.ledger.queries.deliveries(Filter(included_in=digest), limit=2)).entries
    for path in (f"?included_in={digest}", f"/{member.delivery.key}"):
        shown = " ".join((await html(console, f"/console/deliveries{path}")).split())
        assert f'Included in <a href="/console/deliveries/{digest}">a digest</a>' in shown, path
        assert '<span class="badge included">included</span>' in shown, path
        assert '<span class="badge dead">dead</span>' in shown, path
        assert '<span class="badge sent">' not in shown, path


@needs_a_browser
@pytest.mark.timeout(240)
async def test_every_page_passes_axe_in_light_and_dark_and_fits_a_phone(page: Page, console: ConsoleServer) -> None:
    await add_busy_day(console)
    await page.clock.set_fixed_time(console.clock.now())
    pages = await some_pages(console)
    for name, path in pages.items():
        await page.goto(console.url + path)
        await page.locator("main details:not([open]) > summary").evaluate_all("all => all.forEach(one => one.click())")
        assert await axe_violations(page) == [], name
        await page.set_viewport_size({"width": 360, "height": 740})
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, f"{name} is {wide} wide"
        await page.set_viewport_size({"width": 1200, "height": 860})


async def test_an_empty_list_suggests_names_that_the_ledger_knows(console: ConsoleServer) -> None:
    await console.finish("one")
    for listed in ("deliveries", "executions"):
        page = await html(console, f"/console/{listed}?launch_plan=train.dayly&phase=failed")
        assert "There is no launch plan in the ledger &#39;train.dayly&#39;: did you mean train.daily?" in page
        assert "did you mean" in await html(console, f"/console/{listed}?verdict=mached", status=400)


async def test_lists_link_to_their_older_entries(console: ConsoleServer) -> None:
    for name in ("one", "two", "three"):
        await console.finish(name, channels=["email"])
    for listed in ("deliveries", "executions"):
        path, found = f"/console/{listed}?limit=1", []
        for _ in range(3):
            body = await html(console, path)
            found += [name for name in ("one", "two", "three") if f"production/{name}" in body]
            older = re.search(rf'href="(/console/{listed}[^"]*after=[^"]+)"', body)
            path = unescape(older[1]) if older else path
        assert sorted(found) == ["one", "three", "two"], listed


@needs_a_browser
async def test_the_pictures_of_the_documentation_show_these_pages(page: Page, console: ConsoleServer) -> None:
    await add_busy_day(console)
    await page.clock.set_fixed_time(console.clock.now())
    pages = await some_pages(console)
    shots: tuple[tuple[str, Literal["light", "dark"], int], ...] = (
        ("overview", "light", 1200),
        ("deliveries", "dark", 1200),
        ("delivery", "light", 1200),
        ("execution", "light", 1200),
        ("redrive", "light", 1200),
        ("health", "light", 1200),
        ("overview", "dark", 360),
    )
    for name, scheme, width in shots:
        await page.set_viewport_size({"width": width, "height": 860 if width > 360 else 740})
        await page.emulate_media(color_scheme=scheme)
        await page.goto(console.url + pages[name])
        await expect(page.locator("h1")).to_be_visible()
        if name == "overview":
            await expect(page.locator("#live")).to_have_text("live")
        await check_picture(page, f"console-{name}{'-phone' if width == 360 else ''}")


@needs_a_browser
async def test_new_activity_appears_without_a_reload(page: Page, console: ConsoleServer) -> None:
    await page.goto(f"{console.url}/console/")
    await expect(page.get_by_text("No activity yet.")).to_be_visible()
    await expect(page.locator("#live")).to_have_text("live")
    await console.finish(f"e{HOSTILE[:7]}", channels=["slack"])
    await expect(page.locator("#activity li").first).to_contain_text("e<script")
    await console.deliver("slack", DEAD)
    await expect(page.locator("#activity li").first).to_contain_text("Slack refused: channel_not_found")
    await expect(page.get_by_text("No activity yet.")).to_have_count(0)
    await page.locator("#activity li").first.get_by_role("link", name="Slack to").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Slack to #dev-alerts")


@needs_a_browser
async def test_lists_and_waiting_deliveries_refresh_themselves(page: Page, console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack"])
    await console.deliver("slack", DEAD)
    await page.clock.install(time=console.clock.now())
    await page.goto(f"{console.url}/console/deliveries")
    rows = page.locator(".rows > li")
    await expect(rows).to_have_count(1)
    await console.finish("two", channels=["email"])
    await page.clock.fast_forward(10_000)
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_have_class("fresh")
    await expect(page.locator("#live")).to_have_text("live")
    await page.get_by_role("checkbox", name="Select Slack").check()  # what a reader has selected stays as it is
    await console.finish("three", channels=["email"])
    await page.clock.fast_forward(10_000)
    await expect(rows).to_have_count(2)
    await page.get_by_role("checkbox", name="Select Slack").uncheck()
    await page.get_by_role("link", name="Email to").first.focus()
    await page.clock.fast_forward(10_000)
    await expect(rows).to_have_count(3)
    await expect(page.locator(":focus")).to_contain_text("Email to")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("None yet.")).to_be_visible()
    await console.deliver("email")
    await page.clock.fast_forward(10_000)
    await expect(page.locator(".page-head")).to_contain_text("sent")
    await expect(page.get_by_role("region", name="Attempts")).to_contain_text("2.0.0 Ok")


@needs_a_browser
async def test_times_are_in_the_readers_zone_and_in_utc_on_hover(page: Page, console: ConsoleServer) -> None:
    await console.finish("early", ago=timedelta())
    console.clock.advance(timedelta(hours=3))
    now = console.clock.now()
    await console.finish("late", ago=timedelta())
    await page.clock.set_fixed_time(now + timedelta(hours=2))
    await page.goto(f"{console.url}/console/executions")
    times = page.locator(".aside time")
    zurich = ZoneInfo("Europe/Zurich")
    await expect(times).to_have_text([f"{at.astimezone(zurich):%H:%M}" for at in (now, now - timedelta(hours=3))])
    await expect(times.first).to_have_attribute("title", f"{now:%Y-%m-%d %H:%M:%S} UTC")
    await expect(page.locator("#zone")).to_have_text("times are in Europe/Zurich, in UTC on hover")
    since = (now - timedelta(hours=1)).replace(second=0)
    await page.get_by_text("Filter").click()
    await page.get_by_label("Since").fill(f"{since.astimezone(zurich):%Y-%m-%dT%H:%M}")
    await page.get_by_role("button", name="Search", exact=True).click()
    await expect(times).to_have_count(1)
    assert f"since={since:%Y-%m-%dT%H}%3A{since:%M}Z" in page.url
    await expect(page.get_by_label("Since")).to_have_value(f"{since.astimezone(zurich):%Y-%m-%dT%H:%M}")


@needs_a_browser
async def test_dead_deliveries_are_redriven_by_keyboard_after_a_confirmation(
    page: Page, console: ConsoleServer
) -> None:
    for name in ("one", "two", "three"):
        await console.finish(name, channels=["slack"])
    await console.deliver("slack", DEAD)
    await page.goto(f"{console.url}/console/deliveries?state=dead")
    await page.get_by_role("checkbox", name="All on this page").focus()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("button", name="Redrive 3 selected…")).to_be_visible()
    await page.get_by_role("checkbox", name="Select Slack").nth(1).press("Space")
    await page.get_by_role("button", name="Redrive 2 selected…").press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Redrive 2 dead deliveries?")
    await expect(page.locator(".reasons")).to_contain_text("2 Slack Slack refused: channel_not_found")
    assert not console.wakeups  # nothing has changed before the confirmation
    with structlog.testing.capture_logs() as logged:
        await page.get_by_label("Reason").fill("invited the bot")
        await page.get_by_role("button", name="Redrive 2").press("Enter")
        await expect(page.get_by_role("status")).to_have_text("2 deliveries will be retried now.")
    assert [(line["by"], line["deliveries"]) for line in logged if line["event"] == "redriven"] == [("this machine", 2)]
    waiting = await console.ledger.history.find(Filter(states=frozenset({State.WAITING})), limit=9)
    assert (len(waiting), len(console.wakeups)) == (2, 1)
    await page.goto(f"{console.url}/console/deliveries/{waiting[0].delivery.key}")
    actions = page.get_by_role("region", name="Actions")
    await expect(actions).to_contain_text("Redriven by this machine")
    await expect(actions).to_contain_text("invited the bot")


@needs_a_browser
async def test_everything_works_without_javascript(browser: Browser, console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack", "email"])
    await console.deliver("slack", DEAD)
    await console.intake.ingest([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(f"{console.url}/console/")
    await page.get_by_role("link", name="1 dead").click()
    await page.get_by_label("Recipient", exact=True).fill("#DEV-alerts")
    await page.get_by_role("button", name="Search", exact=True).click()
    await page.get_by_role("link", name="Redrive all matching…").click()
    await expect(page.get_by_text("Filter: recipient #DEV-alerts.")).to_be_visible()
    await page.get_by_role("button", name="Redrive 1").click()
    await expect(page.get_by_role("status")).to_have_text("1 delivery will be retried now.")
    await page.get_by_role("link", name="Slack to").click()
    await page.get_by_role("link", name="Retry now…").click()
    await expect(page.get_by_role("region", name="What they wait for")).to_contain_text("none is running")
    await page.get_by_role("button", name="Retry 1 now").click()
    await page.get_by_role("link", name="Cancel…").click()
    await page.get_by_label("Reason").fill("maintenance")
    await page.get_by_role("button", name="Cancel 1").click()
    await expect(page.get_by_text("cancelled by this machine: maintenance")).to_be_visible()
    await expect(page.get_by_role("region", name="Actions")).to_contain_text("Retried now by this machine")
    await page.get_by_role("searchbox").fill("one")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="flytesnacks/production/one").click()
    await expect(page.get_by_text("2 notifications")).to_be_visible()
    await page.get_by_role("link", name="Rejected").click()
    await page.get_by_role("link", name="broken JSON").click()
    await page.get_by_role("button", name="Replay").click()
    await expect(page.get_by_role("alert")).to_contain_text("Replayed and rejected again: broken JSON")
    await page.get_by_role("button", name="Dismiss").click()
    await expect(page.get_by_role("status")).to_contain_text("Dismissed")
    await context.close()


@needs_a_browser
async def test_the_copy_button_copies_a_key(page: Page, console: ConsoleServer) -> None:
    await console.finish("one")
    (delivery,) = await console.deliver("email")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.goto(f"{console.url}/console/deliveries/{delivery.key}")
    await page.get_by_role("button", name="Copy the key").click()
    assert await page.evaluate("navigator.clipboard.readText()") == delivery.key


@needs_a_browser
async def test_a_message_preview_shows_hostile_text_without_running_it(page: Page, console: ConsoleServer) -> None:
    await console.finish("one", channels=["email", "slack", "pagerduty", "teams"], error={"message": HOSTILE})
    dialogs: list[object] = []

    def on_dialog(dialog: object) -> None:
        dialogs.append(dialog)

    page.on("dialog", on_dialog)
    for stored in await console.ledger.history.find(Filter(), limit=9):
        await page.goto(f"{console.url}/console/deliveries/{stored.delivery.key}")
        preview = page.frame_locator("iframe.preview")
        await expect(preview.locator("body")).to_contain_text("<script>alert(1)</script>")
        assert await preview.locator("script").count() == 0
        assert "train.daily failed" in await page.locator(".headline").inner_text()
    assert dialogs == []


async def test_markup_in_events_is_escaped_on_every_page(console: ConsoleServer) -> None:
    await console.finish(
        HOSTILE.replace("/", "|"),
        channels=["slack", "email"],
        launch_plan=HOSTILE.replace("/", "|"),
        recipients=[f"#{HOSTILE}"],
        error={"message": f"{HOSTILE}\n{HOSTILE}"},
        labels={HOSTILE: HOSTILE},
        principal=HOSTILE,
    )
    await console.deliver("slack", DEAD)
    body = f'{{"specversion": "{HOSTILE}'.encode()
    await console.intake.ingest(
        [([("content-type", b"application/cloudevents+json"), (HOSTILE, HOSTILE.encode())], body, HOSTILE)]
    )
    (event,) = (await console.ledger.queries.events(Filter(), limit=2)).entries
    (rejected,) = (await console.ledger.queries.rejected(limit=2)).entries
    paths = [
        "/console/",
        "/console/deliveries",
        "/console/executions",
        "/console/executions/causes",
        f"/console/executions/{event.project}/{event.domain}/{quoted(event.name)}",
        "/console/rejected",
        f"/console/rejected/{rejected.id}",
        "/console/redrive",
        "/console/silences",
        f"/console/silences/{await a_silence_of(console, HOSTILE.replace('/', '|'))}",
        f"/console/silences/add?recipient={quoted(f'#{HOSTILE}')}&project={quoted(HOSTILE)}",
        *(
            f"/console/deliveries/{stored.delivery.key}"
            for stored in await console.ledger.history.find(Filter(), limit=9)
        ),
    ]
    invalid = f"/console/deliveries?recipient={quoted(HOSTILE)}&since={quoted(HOSTILE)}"
    for path, status in [
        *((path, 200) for path in paths),
        (invalid, 400),
        (f"/console/search?q={quoted(HOSTILE)}", 200),
    ]:
        page = await html(console, path, status=status)
        assert "<script>alert" not in page, path
        assert "<img src=x" not in page, path


def quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


async def test_a_digest_leads_to_what_it_tells_of_and_back(console: ConsoleServer) -> None:
    key = await a_dead_digest(console)
    digest = await html(console, f"/console/deliveries/{key}")
    assert f"""It tells of <a href="/console/deliveries?included_in={key}">2 other deliveries</a>""" in digest
    for path in ("/console/deliveries?state=dead", "/console/redrive?selected=1&key=" + key):
        assert """<span class="about">Digest</span>""" in await html(console, path), path
    members = " ".join((await html(console, f"/console/deliveries?included_in={key}")).split())
    assert members.count(f"""Included in <a href="/console/deliveries/{key}">a digest</a>""") == 2
    execution = await html(console, "/console/executions/flytesnacks/production/member0001")
    assert f"""<a href="/console/deliveries/{key}">a digest</a>""" in execution
    (member, _) = (await console.ledger.queries.deliveries(Filter(included_in=key), limit=2)).entries
    assert f"""<a href="/console/deliveries/{key}">a digest</a>""" in await html(
        console, f"/console/deliveries/{member.delivery.key}"
    )


async def test_a_message_preview_has_a_policy_that_allows_no_script(console: ConsoleServer) -> None:
    await console.finish("one")
    (stored,) = await console.ledger.history.find(Filter(), limit=2)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{console.url}/console/deliveries/{stored.delivery.key}/html") as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("sandbox; default-src 'none'; style-src 'unsafe-inline'")
        async with session.get(f"{console.url}/console/") as answer:
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
            assert "style=" not in (body := await answer.text())
            assert "<style" not in body


async def test_an_execution_links_to_flytes_console_and_to_its_logs(console: ConsoleServer) -> None:
    await console.finish("one")
    await console.finish("two", url="https://other.example.com/two?a=1&b=2")
    (mail,) = await console.ledger.history.find(Filter(execution="two"), limit=2)
    flyte = "https://flyte.example.com/console/projects/flytesnacks/domains/production/executions"
    for path, status, page, name in (
        ("executions/flytesnacks/production/one", 200, f"{flyte}/one", "one"),
        ("executions/flytesnacks/production/two", 200, "https://other.example.com/two?a=1&amp;b=2", "two"),
        (f"deliveries/{mail.delivery.key}", 200, "https://other.example.com/two?a=1&amp;b=2", "two"),
        ("executions/flytesnacks/production/unrecorded", 404, f"{flyte}/unrecorded", "unrecorded"),
    ):
        body = await html(console, f"/console/{path}", status=status)
        assert f'href="{page}"' in body
        assert f'href="https://logs.example.com/?q={name}"' in body


async def test_a_delivery_can_be_cancelled_unless_an_attempt_is_in_progress(console: ConsoleServer) -> None:
    await console.finish("one")
    now = console.clock.now()
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    (leased,) = (
        await console.ledger.claim("email", 1, lease="test", until=now + timedelta(minutes=1), admission=admission)
    ).deliveries
    body = await html(console, f"/console/deliveries/{leased.key}")
    assert ("An attempt is in progress." in body, "Cancel…" in body) == (True, False)
    console.clock.advance(timedelta(minutes=2))  # its worker was killed
    body = await html(console, f"/console/deliveries/{leased.key}")
    assert ("An attempt is in progress." in body, "Cancel…" in body) == (False, True)


async def test_the_health_page_shows_every_replicas_components_and_breakers(console: ConsoleServer) -> None:
    await add_replicas(console)
    await console.ledger.refusals.record("teams", now=console.clock.now())
    page = " ".join(re.sub(r"<[^>]+>", " ", unescape(await html(console, "/console/health"))).split())
    assert "2 not working of" in page
    assert "1 circuit breaker open of 4 channels" in page
    assert "1,852 unread in Kafka" in page
    assert "2 replicas running" in page
    assert "dispatcher-7f9c-b8rt:1: the brokers do not answer" in page
    assert (
        "The circuit breaker is open in dispatcher-7f9c-b8rt:1, since 4 minutes ago ; next probe in 30 seconds" in page
    )
    assert "The provider refuses the dispatcher itself, since just now" in page
    assert "its clock is 7 s behind the database's" in page
    assert "not seen dispatcher-66d1-old:1" in page
    console.clock.advance(timedelta(seconds=40))
    later = " ".join((await html(console, "/console/health")).split())
    assert "the next delivery tests whether it can be closed" in later


async def test_a_rejected_message_that_was_stored_in_part_cannot_be_replayed(console: ConsoleServer) -> None:
    await console.intake.ingest([([("content-type", b"application/cloudevents+json")], b"{" * 100_000, "t/0@1")])
    (rejected,) = (await console.ledger.queries.rejected(limit=2)).entries
    body = await html(console, f"/console/rejected/{rejected.id}")
    assert "Only the first 65,536 bytes were stored" in body
    assert "Replay</button>" not in body


async def test_a_caller_without_the_scope_gets_an_error_and_changes_nothing(tmp_path: Path) -> None:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", tokens=TOKENS) as console:
        await console.finish("one", channels=["slack"])
        (dead,) = await console.deliver("slack", DEAD)
        await html(console, "/console/", status=303, headers={"Accept": "text/html"})
        reader = {"Authorization": f"Bearer {TOKENS[0]['token']}"}
        assert "dashboard" in await html(console, "/console/", headers=reader)
        assert "no scope operate" in await html(console, "/console/redrive", status=403, headers=reader)
        async with aiohttp.ClientSession() as session:
            form = {"key": dead.key}
            async with session.post(f"{console.url}/console/redrive", data=form, headers=reader) as answer:
                assert answer.status == 403
            async with session.post(f"{console.url}/console/redrive", data=form) as answer:
                assert answer.status == 401
        (stored,) = await console.ledger.history.find(Filter(), limit=2)
        assert stored.delivery.state is State.DEAD


async def test_a_form_without_the_pages_csrf_token_changes_nothing(console: ConsoleServer) -> None:
    await console.finish("one", channels=["slack"])
    (dead,) = await console.deliver("slack", DEAD)
    form = {"key": dead.key, "csrf_token": "guessed"}
    async with (
        aiohttp.ClientSession(headers={"Cookie": "any=1"}) as session,
        session.post(f"{console.url}/console/redrive", data=form) as answer,
    ):
        assert answer.status == 403
    (stored,) = await console.ledger.history.find(Filter(), limit=2)
    assert stored.delivery.state is State.DEAD


async def test_the_search_field_leads_to_what_the_text_names(console: ConsoleServer) -> None:
    await console.finish("a7failed", channels=["slack"])
    await console.finish("train.daily", Phase.ABORTED, channels=["slack"])
    (stored, *_) = await console.ledger.history.find(Filter(execution="a7failed"), limit=2)

    async def found(text: str) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{console.url}/console/search", params={"q": text}, allow_redirects=False) as answer,
        ):
            return answer.headers.get("Location", "")

    assert await found("a7failed") == "/console/executions?execution=a7failed"
    assert await found("flytesnacks/production/a7failed") == "/console/executions/flytesnacks/production/a7failed"
    assert await found("#DEV-alerts") == "/console/deliveries?recipient=%23DEV-alerts"
    assert await found(stored.delivery.key[:9]) == f"/console/deliveries/{stored.delivery.key}"
    (failed,) = (await console.ledger.queries.events(Filter(execution="a7failed"), limit=2)).entries
    assert await found(failed.cause) == f"/console/executions?cause={quoted(failed.cause)}"
    both = await html(console, "/console/search?q=train.daily")
    assert "Executions named" in both
    assert "Launch plan" in both
    assert "Nothing found" in await html(console, "/console/search?q=nobody%00")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/console/nothing", 404, "There is no such page."),
        ("/console/deliveries/nothing", 404, "There is no such delivery."),
        ("/console/executions/a/b/c", 404, "No event is recorded for this execution."),
        ("/console/rejected/x", 404, "There is no such rejected message."),
        ("/console/deliveries?since=soon", 400, "neither a duration like 24h"),
        ("/console/deliveries?after=x", 400, 'role="alert"'),
        ("/console/deliveries?limit=x", 400, "limit: "),
        ("/console/executions?phase=RUNNING", 400, "phase: "),
        ("/console/rejected?after=x", 400, "begin with the newest"),
        ("/console/redrive?since=soon", 400, "neither a duration like 24h"),
        ("/console/redrive?selected=1", 400, "No delivery was selected"),
        ("/console/stream?after=x", 400, "not an event id"),
        ("/console/deliveries", 200, "No deliveries yet."),
        ("/console/executions", 200, "No executions yet."),
        ("/console/executions/causes?since=soon", 400, "neither a duration like 24h"),
        ("/console/executions/causes?since=24h", 200, "No failed executions."),
        ("/console/redrive", 200, "Nothing to redrive"),
        ("/console/?range=century", 200, "Last 24 hours"),
    ],
)
async def test_errors_and_empty_pages_have_an_explanation(
    console: ConsoleServer, path: str, status: int, text: str
) -> None:
    from html import unescape

    assert text in unescape(await html(console, path, status=status))
