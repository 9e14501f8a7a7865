"""What the answer of a Power Automate workflow, or of a Teams connector, means for a card.

Sources: Microsoft's Teams platform documentation, "Create and send messages" (webhooks and connectors), and "Handle
requests to a workflow" in the documentation of Azure Logic Apps, on which Power Automate is built. A workflow accepts a
card with status 202 and an empty body. A connector accepts it with status 200 and the text `1`. It may report a failure
with status 200 too: `Webhook message delivery failed with error: … HTTP error 429 with ContextId …`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from channels.contract import Answer, ChannelError
from channels.webhook.answers import STATUSES, Fault, Meaning, error_for

if TYPE_CHECKING:
    from channels.common.http import Response

_INNER_ERROR = re.compile(r"HTTP error (\d{3})\b")
_COPY_URL = "copy the URL of the workflow's trigger again, into channels.teams.targets"

MEANINGS = (
    Meaning(
        {401, 403},
        Fault.TARGET,
        "{name} lets only logged-in people start the workflow ({status}): let anyone start it, and " + _COPY_URL,
        words="DirectApiAuthorizationRequired",
    ),
    Meaning({401, 403}, Fault.TARGET, "{name} doesn't take the signature in its URL ({status}): " + _COPY_URL),
    Meaning(
        {400, 404},
        Fault.TARGET,
        "{name} is switched off or deleted ({status}): turn the workflow on, or " + _COPY_URL,
        words="WorkflowTriggerIsNotEnabled",
    ),
    Meaning(
        {400},
        Fault.TARGET,
        "{name} expects other data (400): make the workflow with the trigger "
        '"When a Teams webhook request is received", without a schema of its own',
        words="TriggerInputSchemaMismatch",
    ),
    Meaning({404}, Fault.TARGET, "{name} has no such workflow (404): " + _COPY_URL),
    Meaning({410}, Fault.TARGET, "{name} is gone for good (410): make a new workflow, and " + _COPY_URL),
    Meaning({400}, Fault.MESSAGE, "{name} refused the card (400): run dispatcher preview to see what is wrong with it"),
    Meaning({413}, Fault.MESSAGE, "{name} finds the card too large (413): shorten the template"),
    *STATUSES,
)
"""The meaning of each answer that is no success. The first row that fits applies. The words are the code in
`error.code` of a workflow's answer."""
_DOUBTFUL = Meaning(
    range(200, 300),
    Fault.UNKNOWN,
    "{name} answered {status} with words that are not Teams'; it may have taken the card",
)


def error_of(response: Response, name: str, answer: Answer) -> ChannelError | None:
    """Return the error for a response of Teams; None if Teams accepted the card. `name`: the target's name in the
    reason. `answer`: what the ledger may store of the response.
    """
    if not 200 <= response.status <= 299:
        return error_for(response, name, answer, MEANINGS)
    if inner := _INNER_ERROR.search(response.text):
        return error_for(replace(response, status=int(inner[1])), name, Answer(inner[1], answer.text), MEANINGS)
    # an HTML page is probably from a proxy
    if "delivery failed" in response.text or response.text.lstrip().startswith("<"):
        return error_for(response, name, answer, (_DOUBTFUL,))
    return None


OUTCOMES = """
| Teams | 2xx | as a webhook, also as `HTTP error 429` in the text of a 2xx | as a webhook | as a webhook; a 2xx with `delivery failed` or an HTML page |
"""
