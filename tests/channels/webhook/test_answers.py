"""Each HTTP status of a receiver: its outcome, and its advice."""

from __future__ import annotations

from datetime import timedelta

import pytest

from channels.common.http import Response
from channels.contract import Answer, ChannelError, InDoubt, Later, Misconfigured, Never
from channels.webhook.answers import error_for


@pytest.mark.parametrize(
    ("status", "outcome", "advice"),
    [
        (301, Never, "give the final URL"),
        (308, Never, "give the final URL"),
        (400, Never, "check its URL and the template"),
        (401, Never, "check its URL, secret and headers"),
        (403, Never, "check its URL, secret and headers"),
        (404, Never, "has nothing at this URL"),
        (407, Misconfigured, "the proxy wants a login"),
        (408, Later, "takes no more for now"),
        (410, Never, "take it out of the settings and rules"),
        (413, Never, "shorten the template"),
        (422, Never, "check its URL and the template"),
        (425, Later, "takes no more for now"),
        (429, Later, "takes no more for now"),
        (500, Later, "in trouble"),
        (503, Later, "in trouble"),
        (599, Later, "in trouble"),
        (700, InDoubt, "means nothing to us"),
    ],
)
def test_each_status_has_its_outcome_and_its_advice(status: int, outcome: type[ChannelError], advice: str) -> None:
    error = error_for(Response(status, {"Retry-After": "9"}, ""), "ops", Answer(str(status)))
    assert type(error) is outcome
    assert error.reason.startswith("ops ")
    assert advice in error.reason
    if isinstance(error, Later):
        assert not error.provider_wide
        assert error.retry_after == (timedelta(seconds=9) if outcome is Later else None)
