"""Messages and settings for tests of mail: name what matters, the rest is filled in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from channels.contract import Message
from channels.email import EmailConfig

CONTENT = {"subject": "❌ train.daily failed", "text": "größer\n.\n", "html": "<p>größer</p>"}
ABOUT = {"project": "flytesnacks", "domain": "production", "launch_plan": "train.daily"}


def message(*recipients: str, key: str = "k1", **changes: Any) -> Message:
    facts: dict[str, Any] = {
        "key": key,
        "recipients": recipients or ("a@example.com",),
        "content": CONTENT,
        "created_at": datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC),
        **changes,
    }
    return Message(**facts)


def config(port: int, **changes: Any) -> EmailConfig:
    relay = {"host": "127.0.0.1", "port": port, "security": "none", "timeout": 5}
    return EmailConfig.model_validate({**relay, "from": "Flyte <flyte@example.com>", **changes})


def several(*ports: int, **changes: Any) -> EmailConfig:
    relays = [{"host": "127.0.0.1", "port": port} for port in ports]
    common = {"security": "none", "timeout": 5, "from": "flyte@example.com"}
    return EmailConfig.model_validate({**common, "relays": relays, **changes})
