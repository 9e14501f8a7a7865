"""The demo, the inbox's page, and the fakes' checks."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import aiohttp
import orjson
import pytest

from channels.email.mime import compose
from dispatcher.config.settings import Settings
from dispatcher.demo.fakes.inbox import Inbox, WebhookReceiver
from dispatcher.demo.fakes.mail import Mail
from dispatcher.demo.fakes.pagerduty import Incident
from dispatcher.demo.fakes.slack import SlackMessage
from dispatcher.demo.fakes.webhooks import Call, Card
from dispatcher.errors import SettingsError
from dispatcher.model.phase import Phase
from dispatcher.preview.html import index
from dispatcher.rendering.samples import sample_event
from dispatcher.workbench.sample import SampleRenderer
from tests.support.chromium import axe_violations, needs_a_browser, opened
from tests.support.mail import message
from tests.support.service import COMMAND, ask, command

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


async def test_the_demo_delivers_every_expected_message_and_stays_open_until_it_is_interrupted() -> None:
    demo = await asyncio.create_subprocess_exec(*COMMAND, "demo", stdout=PIPE, stderr=STDOUT)
    assert demo.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(60):
            while not lines or not lines[-1].startswith("the console"):
                lines.append((await demo.stdout.readline()).decode())
                assert lines[-1], "".join(lines)
        settings, inbox, console = (line.split()[-1] for line in lines[-3:])
        assert len(await ask(Path(settings), "deliveries", "list", "--state=sent")) == 11
        status, _, err = await command("publish", "--launch-plan=train.daily", "--config", settings)
        assert status == 0, err
        async with aiohttp.ClientSession() as session:
            for address, other in ((inbox, console), (console, inbox)):
                async with session.get(address) as answer:
                    assert f'href="{other.removesuffix("/")}' in await answer.text()
        demo.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            assert await demo.wait() == 0
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    out = "".join(lines)
    for word in (
        "matched",
        "disabled",
        "resolved   ",
        "rejected",
        "duplicate",
        "arrived",
        "11 messages: every expected message arrived, and no other",
    ):
        assert word in out


async def page(inbox: Inbox, path: str = "/") -> tuple[str, str]:
    async with aiohttp.ClientSession() as session, session.get(f"{inbox.url}{path}") as answer:
        assert answer.status == 200
        return await answer.text(), answer.headers.get("Content-Security-Policy", "")


async def test_the_page_shows_arrivals_and_escapes_their_markup() -> None:
    async with Inbox() as inbox:
        empty, policy = await page(inbox)
        assert "Nothing has arrived yet" in empty
        assert "default-src 'none'" in policy
        content = {"subject": HOSTILE, "text": HOSTILE, "html": f"<p>{HOSTILE}</p>"}
        inbox.arrivals.append(Mail("a@x.com", ("b@x.com",), compose(message(content=content), "a@x.com")))
        blocks = [
            {"type": "header", "text": {"type": "plain_text", "text": HOSTILE}},
            {
                "type": "section",
                "text": {"type": "mrkdwn", "text": "*bold* _it_ ~no~ `c` <https://x.example|label>\n```pre```"},
            },
            {
                "type": "actions",
                "elements": [
                    {"type": "button", "url": "javascript:alert(1)", "text": {"type": "plain_text", "text": "go"}}
                ],
            },
            {"type": "divider"},
            {"type": "image"},
        ]
        inbox.arrivals.append(
            SlackMessage("C1", "alerts", "1.0", {"text": "t", "attachments": [{"color": HOSTILE, "blocks": blocks}]})
        )
        inbox.arrivals.append(Call("audit", "k1", {"text": HOSTILE}))
        elements = [
            {"type": "TextBlock", "text": HOSTILE},
            {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": HOSTILE, "size": '"><script>alert(1)'}]},
            {"type": "FactSet", "facts": [{"title": HOSTILE, "value": "a\\_b"}]},
            {"type": "CodeBlock", "codeSnippet": HOSTILE},
        ]
        actions = [{"type": "Action.OpenUrl", "url": "javascript:alert(1)"}]
        inbox.arrivals.append(Card("ml", {"body": elements, "actions": actions}))
        shown, _ = await page(inbox)

    outside_frames = shown.replace("srcdoc=", "")
    assert "<script>alert" not in outside_frames
    assert "<img" not in outside_frames
    assert "javascript:" not in shown
    for drawn in (
        "<strong>bold</strong>",
        "<em>it</em>",
        "<s>no</s>",
        "<code>c</code>",
        '<a rel="noreferrer" href="https://x.example">label</a>',
        "<pre>pre</pre>",
        "<hr>",
        "[image]",
        'sandbox=""',
        "<td>a_b</td>",
    ):
        assert drawn in shown


async def test_a_port_in_use_is_reported_by_the_option_that_chooses_it() -> None:
    async with Inbox() as inbox:
        port = int(inbox.url.rpartition(":")[2])
        with pytest.raises(SettingsError, match=rf"^--port: can't listen on 127\.0\.0\.1:{port}: "):
            await Inbox(port=port).__aenter__()


@needs_a_browser
async def test_the_inbox_and_the_index_of_previews_pass_axe(tmp_path: Path) -> None:
    renderer = SampleRenderer(Settings())
    entries = []
    async with Inbox() as inbox, opened() as chromium:
        for phase in (Phase.FAILED, Phase.TIMED_OUT):
            for channel in ("email", "slack", "pagerduty", "teams", "webhook"):
                sample = renderer.render(channel, sample_event(phase))
                match channel:
                    case "email":
                        inbox.arrivals.append(Mail("a@x.com", ("b@x.com",), sample.wire))
                    case "slack":
                        inbox.arrivals.append(SlackMessage("C1", "alerts", "1.0", sample.content))
                    case "pagerduty":
                        inbox.arrivals.append(Incident("ml", "key", "triggered", [sample.content]))
                    case "teams":
                        inbox.arrivals.append(Card("ml", sample.content))
                    case _:
                        inbox.arrivals.append(Call("audit", "k1", sample.content))
                (tmp_path / f"{phase}.{channel}.html").write_text(sample.html)
                entries.append((f"{phase}.{channel}", [f"{phase}.{channel}.html"], ["a problem"]))
        (tmp_path / "index.html").write_text(index(entries))
        browser = await chromium.new_page()
        for url in (inbox.url, (tmp_path / "index.html").as_uri()):
            await browser.goto(url)
            assert await axe_violations(browser) == [], url


async def test_the_fakes_refuse_messages_that_the_real_services_refuse() -> None:
    cases = [
        ("slack/api/chat.postMessage", {"channel": "#nowhere", "text": "x"}, "channel_not_found"),
        ("slack/api/chat.postMessage", {"channel": "C1", "text": ""}, "channel_not_found"),
        ("slack/api/nonsense", {}, "unknown_method"),
        ("pagerduty/v2/enqueue", {"routing_key": "x"}, "'routing_key' is invalid"),
        ("pagerduty/v2/enqueue", {"event_action": "explode"}, "'event_action' is invalid"),
        ("teams/workflows/ml", {"text": "x"}, "InvalidRequest"),
        ("teams/workflows/ml", {"attachments": [{"contentType": "x", "content": {}}]}, "InvalidBotAdaptiveCard"),
        ("teams/workflows/ml", {"attachments": ["x" * 30_000]}, "RequestEntityTooLarge"),
        ("hooks/audit", {"text": "x"}, "the signature is wrong"),
    ]
    async with Inbox(webhook=WebhookReceiver(secret="s")) as inbox, aiohttp.ClientSession() as session:
        for path, body, words in cases:
            headers = {"Authorization": f"Bearer {inbox.slack.token}", "Content-Type": "application/json"}
            async with session.post(f"{inbox.url}/{path}", data=orjson.dumps(body), headers=headers) as answer:
                assert words in await answer.text()
        async with session.post(f"{inbox.slack_url}chat.postMessage", json={"channel": "x"}) as answer:
            assert (await answer.json())["error"] == "not_authed"
