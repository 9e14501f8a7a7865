"""Slack messages and threads for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from channels.contract import (
    EarlierMessage,
    Message,
    Receipt,
    Thread,
)

TOKEN = "xoxb-secret-of-the-tests"


def message(
    to: str = "#alerts", *, key: str = "k1", in_doubt: bool = False, thread: Thread | None = None, **content: Any
) -> Message:
    return Message(
        key=key,
        recipients=(to,),
        content=content or {"text": "train.daily failed"},
        created_at=datetime(2026, 11, 20, tzinfo=UTC),
        thread=thread,
        in_doubt=in_doubt,
    )


FAILED: dict[str, Any] = {
    "text": "train.daily failed",
    "blocks": [{"type": "header", "text": {"type": "plain_text", "text": "failed"}}],
    "attachments": [{"color": "#e01e5a", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "why"}}]}],
}


def thread_after(*receipts: Receipt, resolves: bool = False) -> Thread:
    """The thread in which these messages were sent, each with the content `FAILED`."""
    earlier = tuple(EarlierMessage(reference=receipt.reference, content=FAILED) for receipt in receipts)
    return Thread(key="thread", earlier=earlier, resolves=resolves)
