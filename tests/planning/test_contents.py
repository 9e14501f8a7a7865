"""Which deliveries are rendered at intake, and with what options of their recipients."""

from __future__ import annotations

from typing import Any

from channels.contract import Content
from dispatcher.config.settings import Settings
from dispatcher.model.delivery import Kind
from dispatcher.model.hold import DigestOptions, HoldReason, Quiet
from dispatcher.planning.contents import Contents
from dispatcher.rendering.samples import sample_summary
from dispatcher.runtime.wiring import make_contents, make_planner, open_channels
from tests.support.builders import NOW, SECOND, a_delivery, a_digest, an_event


def test_what_may_be_held_is_rendered_only_when_it_goes_out_unless_its_rule_names_a_template() -> None:
    rendered = []

    def render(channel: str, *_: Any, recipient: str = "", **__: Any) -> Content:
        rendered.append(recipient)
        return {"to": recipient}

    digest, quiet = DigestOptions(3, SECOND, SECOND), Quiet(NOW, "contact ml")
    planned = [
        a_delivery(to="a", content=None),
        a_delivery(to="b", content=None, digest=digest),
        a_delivery(to="c", content=None, quiet=quiet),
        a_delivery(to="d", content=None, digest=digest, template="mine.html"),
    ]
    filled = Contents(render).fill(an_event(), planned)
    assert [one.content for one in filled] == [{"to": "a"}, None, None, {"to": "d"}]
    assert rendered == ["a", "d"]


def test_a_digest_has_its_contacts_zone_its_members_severity_and_links_to_the_console() -> None:
    settings = Settings.model_validate(
        {
            "channels": {"email": {"host": "127.0.0.1", "security": "none", "from": "Flyte <flyte@example.com>"}},
            "contacts": {"ml": {"email": ["ml@example.com"], "timezone": "Asia/Tokyo"}},
            "http": {"console": True, "public_url": "https://notify.example.com/flyte/"},
        }
    )
    contents = make_contents(settings, make_planner(settings, open_channels(settings)).contacts)
    summary = sample_summary(HoldReason.DIGEST)
    digest = a_digest(channel="email", to="ml@example.com")
    text = str(contents.summary(summary, digest)["text"])
    assert f"All of them: https://notify.example.com/flyte/console/deliveries?included_in={summary.key}" in text
    assert "https://notify.example.com/flyte/console/executions/flytesnacks/production/" in text
    assert "2026-11-20 18:15:00 UTC+09:00" in text
    notice = digest._replace(kind=Kind.FALLBACK_NOTICE, reason="#dev could not be notified")
    assert "#dev could not be notified" not in text
    assert "#dev could not be notified" in str(contents.summary(summary, notice)["text"])
