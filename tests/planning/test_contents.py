"""Which deliveries are rendered at intake."""

from __future__ import annotations

from typing import Any

from channels.contract import Content
from dispatcher.model.hold import DigestOptions, Quiet
from dispatcher.planning.contents import Contents
from tests.support.builders import NOW, SECOND, a_delivery, an_event


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
