"""Builders of mail messages and settings: a test passes only the values that matter to it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from channels.contract import Message
from channels.email.config import EmailConfig

CONTENT = {"subject": "❌ train.daily failed", "text": "größer\n.\n", "html": "<p>größer</p>"}
ABOUT = {"project": "flytesnacks", "domain": "production", "launch_plan": "train.daily"}


def message(*recipients: str, key: str = "k1", **changes: Any) -> Message:
    fields: dict[str, Any] = {
        "key": key,
        "recipients": recipients or ("a@example.com",),
        "content": CONTENT,
        "created_at": datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC),
        **changes,
    }
    return Message(**fields)


def config(port: int, **changes: Any) -> EmailConfig:
    """Settings with one relay on loopback."""
    relay = {"host": "127.0.0.1", "port": port, "security": "none", "timeout": 5}
    return EmailConfig.model_validate({**relay, "from": "Flyte <flyte@example.com>", **changes})


def config_with_relays(*ports: int, **changes: Any) -> EmailConfig:
    """Settings with several relays on loopback."""
    relays = [{"host": "127.0.0.1", "port": port} for port in ports]
    common = {"security": "none", "timeout": 5, "from": "flyte@example.com"}
    return EmailConfig.model_validate({**common, "relays": relays, **changes})
