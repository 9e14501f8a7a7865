"""The template workbench in a real browser: by mouse, by keyboard, with axe, and the docs' pictures."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from playwright.async_api import Browser, Page, expect

from channels.registry import BUILT_IN
from dispatcher.demo.fakes.inbox import Conversation, Inbox, SlackReceiver
from tests.support.chromium import axe_violations, needs_a_browser, opened
from tests.support.pictures import check_picture
from tests.support.service import COMMAND, command

pytestmark = pytest.mark.asyncio(loop_scope="module")  # all tests use one server and one browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The author's templates, as `templates init` makes them. A test may change or delete them, and restores nothing
    that equals the built-in ones.
    """
    folder = tmp_path_factory.mktemp("workbench") / "own"
    status, _, err = await command("templates", "init", str(folder))
    assert status == 0, err
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inbox() -> AsyncIterator[Inbox]:
    async with Inbox(slack=SlackReceiver(channels=[Conversation("C0000001", "jane")])) as opened_inbox:
        yield opened_inbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(own: Path, inbox: Inbox) -> AsyncIterator[str]:
    config = own.parent / "dispatcher.yaml"
    channels = {
        "slack": {"token": inbox.slack.token, "api_url": inbox.slack_url},
        "webhook": {"targets": {"ops": {"url": "https://hooks.example.com/ops"}}},
    }
    config.write_text(yaml.safe_dump({"channels": channels, "templates": {"path": ["own"]}}))
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "preview", "--serve", "--port", "0", "--config", str(config), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
        address = re.search(r"http://\S+", line)
        assert address, line
        yield address[0]
    finally:
        process.terminate()
        async with asyncio.timeout(20):
            status = await process.wait()
    assert status == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with opened() as chromium:
        yield chromium


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, url: str) -> AsyncIterator[Page]:
    page = await browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(url)
    await expect(page.locator("#state")).to_have_text("Within the provider's limits")
    yield page
    await page.close()
    assert errors == []


def message(page: Page) -> Any:
    return page.frame_locator("#rendered")


@needs_a_browser
async def test_every_channel_phase_screen_and_view_can_be_chosen(page: Page) -> None:
    await expect(message(page).locator(".title")).to_have_text("train.daily failed")
    await expect(page.locator("#headline")).to_have_text(re.compile("train.daily failed · flytesnacks/production"))
    await check_picture(page, "workbench")
    await page.get_by_label("Dark").check()
    await expect(message(page).locator(".card")).to_have_css("background-color", "rgb(34, 37, 41)")
    await page.get_by_label("Phone").check()
    await expect(message(page).locator(".part").first).to_have_css("padding-left", "12px")
    await check_picture(page.locator("#rendered"), "email-phone-dark")
    await page.get_by_label("Light").check()
    await page.get_by_label("Desktop").check()
    await page.get_by_label("Slack").check()
    await expect(message(page).locator(".slack h3")).to_contain_text("train.daily failed")
    await expect(page.locator("#headline")).to_contain_text("ValueError: bad learning rate: <lr> & 'momentum'")
    await check_picture(page.locator("#rendered"), "slack")
    await page.get_by_label("PagerDuty").check()
    await expect(message(page).locator(".pagerduty .tag")).to_have_text("error")
    await check_picture(page.locator("#rendered"), "pagerduty")
    await page.get_by_label("Source").check()
    await expect(page.locator("#plain")).to_contain_text('"event_action": "trigger"')
    await page.get_by_label("Email").check()
    await expect(page.locator("#plain")).to_contain_text("Auto-Submitted: auto-generated")
    await page.get_by_label("Text", exact=True).check()
    await expect(page.locator("#plain")).to_contain_text("Subject: ❌ train.daily failed")
    await page.get_by_label("Phase").select_option("succeeded")
    await expect(page.locator("#plain")).to_contain_text("Subject: ✅ train.daily succeeded")


@needs_a_browser
async def test_reloaded_and_closed_pages_leave_the_server_running(page: Page, browser: Browser, own: Path) -> None:
    for _ in range(10):
        await page.reload()
    other = await browser.new_page()
    await other.goto(page.url)
    await expect(other.locator("#state")).to_have_text("Within the provider's limits")
    await other.close()
    subject = own / "email" / "subject.txt.j2"
    subject.write_text("{{ what }} of mine")
    await expect(page.locator("#headline")).to_have_text("train.daily of mine")
    subject.unlink()
    await expect(page.locator("#headline")).to_contain_text("train.daily failed")


@needs_a_browser
async def test_the_labels_of_five_channels_stand_beside_their_buttons(page: Page) -> None:
    labels = page.locator("label:has(input[name=channel])")
    assert await labels.count() == len(BUILT_IN) == 5
    for label in await labels.all():
        line, button = await label.bounding_box(), await label.locator("input").bounding_box()
        assert line
        assert button
        assert line["y"] <= button["y"]
        assert button["y"] + button["height"] <= line["y"] + line["height"] <= line["y"] + 24


@needs_a_browser
async def test_the_page_reloads_when_a_template_changes_and_shows_its_problems(page: Page, own: Path) -> None:
    await page.get_by_label("Text", exact=True).check()
    subject = own / "email" / "subject.txt.j2"
    subject.write_text("{{ what }} of mine")
    await expect(page.locator("#plain")).to_contain_text("Subject: train.daily of mine")
    subject.write_text("{{ wat }}")
    await expect(page.locator("#problems")).to_contain_text("subject.txt.j2:1: 'wat' is undefined")
    subject.write_text(" ")
    await expect(page.locator("#problems")).to_contain_text("would be refused: the mail has no subject")
    subject.unlink()
    await expect(page.locator("#state")).to_have_text("Within the provider's limits")


@needs_a_browser
async def test_an_author_edits_a_template_sees_the_variables_shares_a_link_and_sends_to_themselves(
    page: Page, browser: Browser, own: Path, inbox: Inbox
) -> None:
    template = own / "slack" / "message.yaml"
    built_in = template.read_text()
    template.write_text(built_in.replace("{{ what | cut(110) }} {{ done }}", "{{ principal }}: {{ what }} {{ done }}"))
    await page.get_by_label("Slack").check()
    await expect(message(page).locator(".slack h3")).to_contain_text("jane.doe: train.daily failed")
    variables = page.get_by_role("region", name="Variables of this message")
    await expect(variables.locator("dt", has_text="principal").locator("+ dd")).to_have_text("jane.doe")
    await expect(variables.locator("dt", has_text="down_for").locator("+ dd")).to_have_text("empty")

    await page.get_by_label("Phase").select_option("digest")
    await expect(message(page).locator(".slack h3")).to_contain_text("297 failed")
    await expect(variables.locator("dt", has_text="summary.kind").locator("+ dd")).to_have_text("digest")
    await page.get_by_label("Me, as a rule writes me").fill("#jane")
    await page.get_by_role("button", name="Send to me").click()
    await expect(page.locator("#sent")).to_contain_text("not sent: a test is a message about an execution")
    await page.get_by_label("Phase").select_option("resolved")
    await expect(variables.locator("dt", has_text="down_for").locator("+ dd")).to_have_text("5 hours")
    event = page.get_by_label("Event", exact=True)
    await event.fill((await event.input_value()).replace("jane.doe", "mary"))
    await page.get_by_label("Text", exact=True).check()
    await page.get_by_label("Recipient").fill("#alerts")
    await expect(page.locator("#plain")).to_contain_text("mary: train.daily succeeded")
    await expect(page.locator("#plain")).to_contain_text("after 3 failures")
    other = await browser.new_page()
    await other.goto(await page.get_by_role("link", name="Link to this message").evaluate("link => link.href"))
    await expect(other.locator("#plain")).to_have_text(await page.locator("#plain").inner_text())
    for label, value in (("Recipient", "#alerts"), ("Phase", "resolved")):
        await expect(other.get_by_label(label)).to_have_value(value)
    await other.close()

    await page.get_by_label("Me, as a rule writes me").fill("#jane")
    await page.get_by_role("button", name="Send to me").click()
    await expect(page.locator("#sent")).to_contain_text("sent: slack accepted it")
    (sent,) = inbox.slack.messages
    assert (sent.channel, sent.body["text"].startswith("✅ TEST: train.daily succeeded")) == ("C0000001", True)
    assert "mary: TEST: train.daily" in str(sent.body["blocks"])

    template.write_text("text: '{{ wat }}'")
    await expect(page.locator("#problems")).to_contain_text("'wat' is undefined")
    await page.get_by_role("button", name="Send to me").click()
    await expect(page.locator("#sent")).to_contain_text("not sent:")
    await page.get_by_label("Recipient").fill("")
    await page.get_by_label("PagerDuty").check()
    await page.get_by_label("Me, as a rule writes me").fill("ml")
    await page.get_by_role("button", name="Send to me").click()
    await expect(page.locator("#sent")).to_contain_text("add channels.pagerduty to the settings")
    await page.get_by_label("Slack").check()
    await expect(page.get_by_label("Me, as a rule writes me")).to_have_value("#jane")
    assert len(inbox.slack.messages) == 1
    template.write_text(built_in)
    await expect(page.locator("#state")).to_have_text("Within the provider's limits")


@needs_a_browser
async def test_the_event_is_edited_in_place_and_never_becomes_markup(page: Page) -> None:
    event = page.get_by_label("Event", exact=True)
    text = await event.input_value()
    await event.fill(text.replace("train.daily", "<img src=x onerror=alert(1)>"))
    await expect(message(page).locator(".title")).to_have_text("<img src=x onerror=alert(1)> failed")
    assert await message(page).locator("img").count() == 0
    await event.fill("{")
    await expect(page.locator("#problems")).to_contain_text("the event is no JSON")
    await event.fill('{"phase": "FAILED"}')
    await expect(page.locator("#problems")).to_contain_text("event.execution: must be set")


@needs_a_browser
async def test_the_page_is_used_by_keyboard_and_passes_axe(page: Page) -> None:
    await page.locator("#phase").focus()
    await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowDown")
    await expect(page.get_by_label("Slack")).to_be_checked()
    await expect(message(page).locator(".slack h3")).to_be_visible()
    for _ in range(5):
        await page.keyboard.press("Tab")
    await expect(page.get_by_label("Event", exact=True)).to_be_focused()
    assert await axe_violations(page) == []


async def test_the_server_answers_only_its_own_paths_and_loopback_host_names(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/../preview.py", "/page.py", "/events/running"):
            async with session.get(f"{url}{path}") as answer:
                assert answer.status == 404
        async with session.get(url, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 400
        async with session.get(url) as answer:
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        async with session.post(f"{url}/sample", data=b"no json") as answer:
            assert "Invalid JSON" in (await answer.json())["error"]
        async with session.post(f"{url}/send", data=b"{}", headers={"Sec-Fetch-Site": "cross-site"}) as answer:
            assert "another site" in (await answer.json())["message"]
