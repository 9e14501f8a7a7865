"""What is owed: one delivery for each thing to be sent, and nobody told twice."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from channels.contract import UnknownRecipient
from channels.slack.channel import SlackChannel, SlackConfig
from dispatcher.model.delivery import OpenThread, State
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.planning.planner import Planner
from dispatcher.rules import Rule
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, a_notification, a_rule, an_event


def mail_address(recipient: str) -> str:
    if "@" not in recipient:
        raise UnknownRecipient("not a mail address")
    return recipient.lower()


def slack_address(recipient: str) -> str:
    known = {"#dev": "C1", "C1": "C1", "#ops": "C2"}
    if recipient not in known:
        raise UnknownRecipient("neither a channel nor a person")
    return known[recipient]


def a_planner(**changes: Any) -> Planner:
    given_facts: dict[str, Any] = {
        "addresses": {"email": mail_address, "slack": slack_address},
        "fallbacks": {"slack": "email"},
        "render": lambda channel, event, template=None, **_: {"channel": channel, "template": template},
        **changes,
    }
    return Planner(**given_facts)


def owed(*rules: Rule, planner: Planner | None = None) -> list[tuple[str, tuple[str, ...], State]]:
    deliveries = (planner or a_planner()).plan(an_event(), rules, now=NOW)
    return [(delivery.channel, delivery.addresses or delivery.recipients, delivery.state) for delivery in deliveries]


WAITING, DEAD = State.WAITING, State.DEAD


def test_a_mail_goes_to_a_rules_whole_list_and_a_slack_message_to_each() -> None:
    assert owed(a_rule("a@x.com", "b@x.com"), a_rule("#dev", "#ops", channel="slack")) == [
        ("email", ("a@x.com", "b@x.com"), WAITING),
        ("slack", ("C1",), WAITING),
        ("slack", ("C2",), WAITING),
    ]


def test_overlapping_rules_tell_nobody_twice() -> None:
    rules = [a_rule("a@x.com", "b@x.com"), a_rule("B@x.com", "c@x.com"), a_rule("a@x.com")]
    assert owed(*rules, a_rule("#dev", "C1", channel="slack")) == [
        ("email", ("a@x.com", "b@x.com"), WAITING),
        ("email", ("c@x.com",), WAITING),
        ("slack", ("C1",), WAITING),
    ]


def test_whom_a_channel_cannot_serve_its_fallback_does() -> None:
    assert owed(a_rule("#dev", "who@x.com", channel="slack")) == [
        ("slack", ("C1",), WAITING),
        ("email", ("who@x.com",), WAITING),
    ]


def test_a_fallback_does_not_repeat_what_a_mail_says_already() -> None:
    assert owed(a_rule("who@x.com"), a_rule("who@x.com", channel="slack")) == [("email", ("who@x.com",), WAITING)]


def test_whom_nobody_can_serve_is_owed_a_dead_delivery_with_the_reason() -> None:
    (delivery,) = a_planner().plan(an_event(), [a_rule("nonsense", channel="slack")], now=NOW)
    assert delivery.state is DEAD
    assert delivery.reason == "neither a channel nor a person; nor does email: not a mail address"
    (delivery,) = a_planner(fallbacks={}).plan(an_event(), [a_rule("who@x.com", channel="slack")], now=NOW)
    assert delivery.reason == "neither a channel nor a person"


def test_a_channel_that_is_switched_off_says_how_to_switch_it_on() -> None:
    (delivery,) = a_planner().plan(an_event(), [a_rule("svc", channel="pagerduty")], now=NOW)
    assert (delivery.state, delivery.reason) == (
        DEAD,
        "no such channel is configured: add channels.pagerduty to the settings",
    )


def test_a_notifications_own_template_is_for_its_mail_alone() -> None:
    notification = a_notification("#dev", "who@x.com", channel="slack").model_copy(update={"template": "<p>hi</p>"})
    one, other = a_planner().plan(an_event(), [Rule(notification, "test")], now=NOW)
    assert (one.content["template"], other.content["template"]) == (None, "<p>hi</p>")


def test_the_same_message_is_rendered_once() -> None:
    rendered = []

    def render(channel: str, *_: Any, **__: Any) -> dict[str, Any]:
        rendered.append(channel)
        return {}

    planner = a_planner(render=render)
    planner.plan(an_event(), [a_rule("#dev", "#ops", channel="slack"), a_rule("a@x.com"), a_rule("b@x.com")], now=NOW)
    assert rendered == ["slack", "email"]


def a_planner_with_last_resorts(**resorts: list[str]) -> Planner:
    def render(*_: Any, undelivered: str = "", **__: Any) -> dict[str, Any]:
        return {"undelivered": undelivered}

    return a_planner(last_resorts={"slack": resorts}, fallbacks={}, render=render)


def test_the_fallback_recipients_are_told_of_what_is_dead_from_the_start() -> None:
    planner = a_planner_with_last_resorts(email=["oncall@x.com"], slack=["#ops"])
    rule = a_rule("#dev", "#nowhere", "#nobody", channel="slack")
    nowhere, _, dev, mail, message = planner.plan(an_event(), [rule], now=NOW)

    assert (dev.state, nowhere.state) == (WAITING, DEAD)
    for notice, address in ((mail, "oncall@x.com"), (message, "C2")):
        assert (notice.state, notice.addresses, notice.fallback_for) == (WAITING, (address,), nowhere.key)
        assert notice.content["undelivered"].startswith("#nowhere could not be told by slack: neither")


def test_a_fallback_recipient_is_told_once_an_event_and_beside_what_it_gets_anyway() -> None:
    planner = a_planner_with_last_resorts(email=["OnCall@x.com"])
    rules = [a_rule("oncall@x.com"), a_rule("#nowhere", channel="slack")]
    own, dead, notice = planner.plan(an_event(), rules, now=NOW)
    (again,) = planner.give_notice(an_event(), a_delivery(channel="slack", to="#dev"), "is_archived", now=NOW)

    assert (own.addresses, notice.addresses) == (("oncall@x.com",), ("oncall@x.com",))
    assert len({own.key, dead.key, notice.key}) == 3
    assert again.key == notice.key  # so the ledger keeps the first


def test_nobody_is_told_that_a_fallback_recipient_could_not_be_told() -> None:
    planner = a_planner_with_last_resorts(email=["oncall@x.com"])
    notice = a_delivery(channel="slack", to="#dev", fallback_for="another")
    assert planner.give_notice(an_event(), notice, "is_archived", now=NOW) == ()


def test_fallback_recipients_that_nobody_can_serve_are_named() -> None:
    planner = a_planner_with_last_resorts(email=["oncall"], slack=["#ops", "#nowhere"])
    assert list(planner.unreachable()) == [
        "channels.slack.fallback_recipients.email: oncall: not a mail address",
        "channels.slack.fallback_recipients.slack: #nowhere: neither a channel nor a person",
    ]


def test_a_delivery_that_found_nobody_is_rerouted_unless_they_know_already() -> None:
    lost = a_delivery(channel="slack", to="who@x.com")
    (mail,) = a_planner().reroute(an_event(), lost, [], now=NOW)
    assert (mail.channel, mail.addresses) == ("email", ("who@x.com",))
    (again,) = a_planner().reroute(an_event(), lost, [], now=NOW + SECOND)
    assert again.key == mail.key  # so the ledger keeps one, whichever replicas reroute it
    assert a_planner().reroute(an_event(), lost, [("email", "who@x.com")], now=NOW) == ()
    assert a_planner(fallbacks={}).reroute(an_event(), lost, [], now=NOW) == ()


recipients = st.lists(
    st.sampled_from(["a@x.com", "A@x.com", "b@x.com", "#dev", "C1", "#ops", "bad"]), min_size=1, max_size=5
)
rules = st.builds(
    lambda who, channel: a_rule(*who, channel=channel), recipients, st.sampled_from(["email", "slack", "pagerduty"])
)


@given(st.lists(rules, max_size=5))
def test_every_recipient_is_accounted_for_exactly_once_and_keys_are_stable(given_rules: list[Rule]) -> None:
    planner = a_planner()
    deliveries = planner.plan(an_event(), given_rules, now=NOW)

    told = [(delivery.channel, address) for delivery in deliveries for address in delivery.addresses]
    assert len(told) == len(set(told))
    keys = [delivery.key for delivery in deliveries]
    assert len(keys) == len(set(keys))
    assert keys == [delivery.key for delivery in planner.plan(an_event(), given_rules, now=NOW)]
    assert all(delivery.reason for delivery in deliveries if delivery.state is DEAD)
    named = {recipient.casefold() for rule in given_rules for recipient in rule.notification.recipients}
    reached = {recipient.casefold() for delivery in deliveries for recipient in delivery.recipients}
    assert reached <= named
    assert {name for name in named if "@" in name} <= reached | {
        name
        for name in named
        if all(name not in map(str.casefold, rule.notification.recipients) for rule in given_rules)
    }


# -- conversations


def a_talking_planner(scope: str | None = "launch_plan", **changes: Any) -> Planner:
    return a_planner(thread_by={"slack": lambda _: scope}, **changes)


def talk_of(planner: Planner, *recipients: str, **facts: Any) -> list[str]:
    """The conversations of a Slack rule's deliveries."""
    facts = {"launch_plan": a_launch_plan(), **facts}
    rule = a_rule(*(recipients or ("#dev",)), channel="slack", phases=tuple(TERMINAL))
    return [made.thread for made in planner.plan(an_event(**facts), [rule], now=NOW)]


def test_one_conversation_is_about_a_launch_plan_in_any_version_at_one_address() -> None:
    planner = a_talking_planner()
    (one,) = talk_of(planner)
    assert one
    assert [one] == talk_of(planner, name="another-run")
    assert [one] == talk_of(planner, launch_plan=a_launch_plan(version="v9"), phase=Phase.TIMED_OUT)
    others = [*talk_of(planner, "#ops"), *talk_of(planner, launch_plan=a_launch_plan("other"))]
    assert len({one, *others}) == 3


def test_one_conversation_is_about_an_execution_where_the_settings_say_so() -> None:
    planner = a_talking_planner("execution")
    assert talk_of(planner) == talk_of(planner, phase=Phase.ABORTED) != talk_of(planner, name="another-run")


def test_what_cannot_be_talked_about_and_what_succeeded_stands_alone() -> None:
    assert talk_of(a_talking_planner(None)) == talk_of(a_planner()) == [""]
    assert talk_of(a_talking_planner(), phase=Phase.SUCCEEDED) == [""]
    assert talk_of(a_talking_planner(), launch_plan=None) == [""]
    (mail,) = a_talking_planner().plan(an_event(), [a_rule("a@x.com")], now=NOW)
    assert (mail.thread, mail.launch_plan) == ("", "")


def test_a_success_ends_what_was_opened_with_a_message_of_its_own_key() -> None:
    planner = a_talking_planner()
    event = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan())
    recovery = planner.resolution(event, now=NOW)
    assert recovery is not None
    assert (recovery.launch_plan, recovery.occurred_at) == ("flytesnacks/production/train.daily", event.occurred_at)
    opened = [
        OpenThread(channel="slack", recipients=("#dev",), addresses=("C1",), thread=talk, event="p/d/n/FAILED")
        for talk in ("one", "two")
    ]
    made = [recovery.close(one) for one in opened]
    assert [(one.resolves, one.thread, one.addresses, one.event) for one in made if one] == [
        (True, "one", ("C1",), event.key),
        (True, "two", ("C1",), event.key),
    ]
    assert len({one.key for one in made if one}) == 2
    (owed,) = planner.plan(event, [a_rule("C1", channel="slack")], now=NOW)
    assert {one.key[:5] for one in made if one} == {owed.key[:5]}  # written at once, so neighbours in the ledger


def test_nothing_is_ended_where_nobody_is_talked_with_any_more() -> None:
    success = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan())
    assert a_planner().resolution(success, now=NOW) is None
    assert a_talking_planner().resolution(an_event(launch_plan=a_launch_plan()), now=NOW) is None
    assert a_talking_planner().resolution(an_event(Phase.SUCCEEDED), now=NOW) is None
    recovery = a_talking_planner(None).resolution(success, now=NOW)
    assert recovery is not None
    for channel in ("slack", "pagerduty"):
        opened = OpenThread(channel=channel, recipients=("#dev",), addresses=("C1",), thread="c", event="e")
        assert recovery.close(opened) is None


def test_a_new_version_is_told_to_whom_any_rule_names_once() -> None:
    planner = a_planner(changes={"slack": lambda event: {"version": event.launch_plan.version}})
    event = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan(version="v2"))
    rules = [a_rule("#dev", "#nobody", channel="slack"), a_rule("C1", "#ops", channel="slack"), a_rule("a@x.com")]

    run = planner.version(event, rules, now=NOW)

    assert run is not None
    assert (run.launch_plan, run.version) == ("flytesnacks/production/train.daily", "v2")
    told = run.tell()
    assert [(one.addresses, one.content, one.thread) for one in told] == [
        (("C1",), {"version": "v2"}, ""),
        (("C2",), {"version": "v2"}, ""),
    ]
    assert not {one.key for one in told} & {one.key for one in planner.plan(event, rules, now=NOW)}
    assert planner.version(event, rules[2:], now=NOW) is None
    assert planner.version(an_event(Phase.SUCCEEDED), rules, now=NOW) is None


def test_a_recipient_stands_for_another_channels_whatever_its_rule_names() -> None:
    planner = a_planner(moved={"#teams": ("slack", "#dev"), "on-call@x.com": ("slack", "#ops")})
    rules = [a_rule("#teams", "on-call@x.com", "a@x.com"), a_rule("#dev", channel="slack")]
    assert owed(*rules, planner=planner) == [
        ("slack", ("C1",), State.WAITING),
        ("slack", ("C2",), State.WAITING),
        ("email", ("a@x.com",), State.WAITING),
    ]
    deliveries = planner.plan(an_event(), rules, now=NOW)
    assert [delivery.recipients for delivery in deliveries] == [("#teams",), ("on-call@x.com",), ("a@x.com",)]


def test_a_recipient_that_stands_for_nobody_is_told_at_the_start_and_dead_later() -> None:
    planner = a_planner(moved={"#dev": ("teams", "ml")})
    reason = "no such channel is configured: add channels.teams to the settings"
    assert list(planner.unreachable()) == [f"rules.recipients: #dev: {reason}"]
    (delivery,) = planner.plan(an_event(), [a_rule("#dev", channel="slack")], now=NOW)
    assert (delivery.state, delivery.reason) == (State.DEAD, reason)


def test_a_slack_channels_own_mail_address_goes_by_mail_whatever_the_fallback() -> None:
    def slack(recipient: str) -> str:
        return SlackChannel(SlackConfig.model_validate({"token": "t", "recipients": {"#dev": MAILBOX}})).address(
            recipient
        )

    rule = a_rule(MAILBOX, "#dev", "C0000001", channel="slack")
    planner = a_planner(addresses={"email": mail_address, "slack": slack}, fallbacks={})
    assert owed(rule, planner=planner) == [("email", (MAILBOX,), WAITING), ("slack", ("C0000001",), WAITING)]
    planner = a_planner(addresses={"slack": slack}, fallbacks={})
    assert [state for _, _, state in owed(rule, planner=planner)] == [DEAD, DEAD, WAITING]


MAILBOX = "alerts-aaaabbbb@team.slack.com"
