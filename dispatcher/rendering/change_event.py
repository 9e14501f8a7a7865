"""Builds PagerDuty's change event, which reports that a launch plan runs in a new version.

Source: PagerDuty's Events API v2, "Send change events".
"""

from __future__ import annotations

from channels.contract import Content
from dispatcher.rendering.context import Context
from dispatcher.rendering.limits import PAGERDUTY_SUMMARY
from dispatcher.rendering.text import cut


def change_event(context: Context) -> Content:
    """Build the change event for a launch plan's version whose first execution has finished. It uses no template."""
    plan = context.launch_plan
    summary = f"{plan.name} has run in version {plan.version} for the first time: it {context.done}"
    details = {
        "task" if plan.kind == "task" else "launch_plan": plan.name,
        "version": plan.version,
        "execution": f"{context.project}/{context.domain}/{context.name}",
        "started_by": context.principal,
    }
    links = [{"href": context.url, "text": "Open the execution"}] if context.url else []
    return {
        "payload": {
            "summary": cut(summary, PAGERDUTY_SUMMARY),
            "timestamp": context.timestamp,
            "source": f"{context.project}/{context.domain}",
            "custom_details": {name: value for name, value in details.items() if value},
        },
        "links": links,
    }
