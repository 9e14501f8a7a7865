"""Makes the content of a change event, which reports that a launch plan runs in a new version.

Source: PagerDuty's Events API v2, "Send change events".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from channels.common.text import cut
from channels.contract import Content
from channels.pagerduty.limits import SUMMARY


def change_event(variables: Mapping[str, Any]) -> Content:
    """Return the content, given the template variables of the first execution that has finished in this version."""
    plan, url = variables["launch_plan"], variables["url"]
    place = f"{variables['project']}/{variables['domain']}"
    details = {
        "task" if plan.kind == "task" else "launch_plan": plan.name,
        "version": plan.version,
        "execution": f"{place}/{variables['name']}",
        "started_by": variables["principal"],
    }
    summary = f"{plan.name} has run in version {plan.version} for the first time: it {variables['done']}"
    return {
        "payload": {
            "summary": cut(summary, SUMMARY),
            "timestamp": variables["finished"].iso,
            "source": place,
            "custom_details": {name: value for name, value in details.items() if value},
        },
        "links": [{"href": url, "text": "Open the execution"}] if url else [],
    }
