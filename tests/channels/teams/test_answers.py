"""Each documented answer of Power Automate workflows and Teams connectors: its outcome, and its advice."""

from __future__ import annotations

from datetime import timedelta

import pytest

from channels.common.http import Response
from channels.contract import Answer, ChannelError, InDoubt, Later, Misconfigured, Never
from channels.teams.answers import error_of


def coded(code: str, words: str = "words") -> str:
    """The body of a workflow's answer with this code."""
    return f'{{"error":{{"code":"{code}","message":"{words}"}}}}'


def connector(status: int) -> str:
    """A connector's answer when Teams has refused the card."""
    return (
        "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error "
        f"{status} with ContextId tcid=0,server=DB3PEPF0000009A,cv=Qn6afVIGzEq"
    )


@pytest.mark.parametrize(
    ("status", "text", "outcome", "advice"),
    [
        # workflows
        (202, "", None, ""),
        (200, '{"id":"08"}', None, ""),
        (400, coded("TriggerInputSchemaMismatch"), Never, "When a Teams webhook request is received"),
        (400, coded("WorkflowTriggerIsNotEnabled", "state 'Disabled'"), Never, "turn the workflow on"),
        (404, coded("WorkflowTriggerIsNotEnabled", "state 'Deleted'"), Never, "switched off or deleted"),
        (400, coded("InvalidRequestContent"), Never, "dispatcher preview"),
        (401, coded("DirectApiAuthorizationRequired", "OAuth scheme is required"), Never, "let anyone start it"),
        (401, coded("DirectApiAuthorizationRequired", "Shared Access scheme"), Never, "copy the URL"),
        (401, coded("AuthorizationFailed"), Never, "doesn't take the signature in its URL"),
        (403, coded("Forbidden"), Never, "doesn't take the signature in its URL"),
        (404, coded("WorkflowNotFound"), Never, "no such workflow"),
        (404, coded("WorkflowTriggerNotFound"), Never, "copy the URL"),
        (407, "", Misconfigured, "the proxy wants a login"),
        (413, coded("RequestEntityTooLarge"), Never, "shorten the template"),
        (429, coded("WorkflowRunActionsThrottled"), Later, "takes no more for now"),
        (500, coded("InternalServerError"), Later, "in trouble"),
        (502, coded("NoResponse"), Later, "in trouble"),
        (504, coded("GatewayTimeout"), Later, "in trouble"),
        # connectors
        (200, "1", None, ""),
        (200, connector(429), Later, "takes no more for now"),
        (200, connector(502), Later, "in trouble"),
        (200, connector(413), Never, "shorten the template"),
        (200, connector(400), Never, "dispatcher preview"),
        (200, "Webhook message delivery failed with error: something else", InDoubt, "may have taken the card"),
        (400, "Bad payload received by generic incoming webhook.", Never, "dispatcher preview"),
        (400, "Summary or Text is required.", Never, "dispatcher preview"),
        (403, "Forbidden", Never, "copy the URL"),
        (410, "Connector configuration not found", Never, "gone for good"),
        # neither
        (200, "\n<html>please log in</html>", InDoubt, "may have taken the card"),
        (302, "", Never, "give the final URL"),
        (600, "", InDoubt, "means nothing to us"),
    ],
)
def test_each_answer_has_its_outcome_and_its_advice(
    status: int, text: str, outcome: type[ChannelError] | None, advice: str
) -> None:
    response = Response(status, {"Retry-After": "9"}, text)
    error = error_of(response, "ml", Answer(str(status), "shortened and masked"))
    if outcome is None:
        assert error is None
        return
    assert type(error) is outcome
    assert error.reason.startswith("ml ")
    assert advice in error.reason
    assert error.answer is not None
    assert error.answer.text == "shortened and masked"
    if outcome is Later:
        assert isinstance(error, Later)
        assert (error.retry_after, error.provider_wide) == (timedelta(seconds=9), False)
