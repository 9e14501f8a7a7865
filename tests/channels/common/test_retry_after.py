"""The header Retry-After, as servers and hostile proxies write it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from channels.common.retry_after import MAX_DELAY, retry_after


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("7", timedelta(seconds=7)),
        ("-7", timedelta()),
        ("Wed, 21 Oct 2015 07:28:00 GMT", timedelta()),
        ("Thu, 21 Oct 2999 07:28:00 GMT", MAX_DELAY),
        ("Thu, 21 Oct 99999999999 07:28:00 GMT", None),
        ("Thu, 21 Oct 2999 07:28:00 +99999999999", None),
        ("1e400", None),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_a_delay_is_between_0_and_24_hours_or_missing(text: str, delay: timedelta | None) -> None:
    assert retry_after({"Retry-After": text}) == delay
