"""Planning: matched rules become deliveries, and no address is notified twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from channels.contract import UnknownRecipient
from channels.slack.channel import SlackChannel, SlackConfig
from dispatcher.model.delivery import Kind, OpenThread, RuleRef, State, execution_subject
from dispatcher.model.event import ExecutionId
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.planning.contacts import Contact, Contacts, Options
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.planning.targets import Target
from dispatcher.rules import Rule
from tests.support.builders import (
    NOW,
    SECOND,
    a_delivery,
    a_launch_plan,
    a_notification,
    a_rule,
    an_event,
    some_contacts,
)


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
    arguments: dict[str, Any] = {
        "addresses": {"email": mail_address, "slack": slack_address},
        "fallbacks": {"slack": "email"},
        "grouped": frozenset({"email"}),
        "with_own_template": frozenset({"email"}),
        **changes,
    }
    return Planner(**arguments)


def planned(*rules: Rule, planner: Planner | None = None) -> list[tuple[str, tuple[str, ...], State]]:
    deliveries = (planner or a_planner()).plan(an_event(), rules, now=NOW)
    return [(delivery.channel, delivery.addresses or delivery.recipients, delivery.state) for delivery in deliveries]


WAITING, DEAD = State.WAITING, State.DEAD


def test_a_mail_has_a_rules_whole_list_and_a_slack_message_one_recipient() -> None:
    assert planned(a_rule("a@x.com", "b@x.com"), a_rule("#dev", "#ops", channel="slack")) == [
        ("email", ("a@x.com", "b@x.com"), WAITING),
        ("slack", ("C1",), WAITING),
        ("slack", ("C2",), WAITING),
    ]


def test_overlapping_rules_notify_each_address_once() -> None:
    rules = [a_rule("a@x.com", "b@x.com"), a_rule("B@x.com", "c@x.com"), a_rule("a@x.com")]
    assert planned(*rules, a_rule("#dev", "C1", channel="slack")) == [
        ("email", ("a@x.com", "b@x.com"), WAITING),
        ("email", ("c@x.com",), WAITING),
        ("slack", ("C1",), WAITING),
    ]
    assert planned(a_rule("große@x.com", "GROßE@x.com", "grosse@x.com")) == [  # ß is no other way to write ss
        ("email", ("große@x.com", "grosse@x.com"), WAITING)
    ]


def test_a_delivery_lists_every_rule_that_names_one_of_its_recipients_once() -> None:
    rules = [
        a_rule("a@x.com", "b@x.com", defined_at="one"),
        Rule(a_notification("#dev", "A@x.com", "a@x.com", channel="slack"), "two", name="route"),
        a_rule("c@x.com", "B@x.com", "bad", defined_at="three"),
        a_rule("C1", channel="slack", defined_at="four"),
        a_rule("BAD", defined_at="five"),
    ]
    deliveries = a_planner().plan(an_event(), rules, now=NOW)
    assert [(one.recipients, [*map(str, one.rules)]) for one in deliveries] == [
        (("a@x.com", "b@x.com"), ["one", "route (two)", "three"]),
        (("#dev",), ["route (two)", "four"]),
        (("c@x.com",), ["three"]),
        (("bad",), ["three", "five"]),
    ]


def test_the_deliveries_of_a_route_stand_beside_those_of_the_rules_which_are_looked_up_once() -> None:
    asked: list[str] = []

    def address(recipient: str) -> str:
        asked.append(recipient)
        return recipient.lower()

    planner = Planner({"email": address}, {}, grouped=frozenset({"email"}), with_own_template=frozenset({"email"}))
    notification = a_notification(*(f"p{number}@x.com" for number in range(300))).model_copy(update={"template": "own"})
    routes = [
        [Rule(a_notification(f"P{number}@x.com", f"new{number}@x.com"), "here", f"r{number}", "critical")]
        for number in range(50)
    ]
    planned = planner.plan_routes(an_event(), [Rule(notification, "plan")], routes, now=NOW)
    assert len(asked) == 300 + 2 * 50
    assert [
        [(one.recipients, one.template, one.severity, [cause.defined_at for cause in one.rules]) for one in several]
        for several in planned
    ] == [
        [
            ((f"p{number}@x.com",), "own", "critical", ["plan", "here"]),
            ((f"new{number}@x.com",), None, "critical", ["here"]),
        ]
        for number in range(50)
    ]


def test_a_recipient_that_the_channel_does_not_know_goes_to_its_fallback() -> None:
    assert planned(a_rule("#dev", "who@x.com", channel="slack")) == [
        ("slack", ("C1",), WAITING),
        ("email", ("who@x.com",), WAITING),
    ]


def test_a_fallback_adds_no_second_mail_to_an_address() -> None:
    assert planned(a_rule("who@x.com"), a_rule("who@x.com", channel="slack")) == [("email", ("who@x.com",), WAITING)]


def test_a_recipient_that_no_channel_knows_is_undeliverable_with_the_reason() -> None:
    (delivery,) = a_planner().plan(an_event(), [a_rule("nonsense", channel="slack")], now=NOW)
    assert delivery.state is DEAD
    assert delivery.reason == "neither a channel nor a person; nor does email: not a mail address"
    (delivery,) = a_planner(fallbacks={}).plan(an_event(), [a_rule("who@x.com", channel="slack")], now=NOW)
    assert delivery.reason == "neither a channel nor a person"


def test_the_reason_for_an_unconfigured_channel_names_its_setting() -> None:
    (delivery,) = a_planner().plan(an_event(), [a_rule("svc", channel="pagerduty")], now=NOW)
    assert (delivery.state, delivery.reason) == (
        DEAD,
        "no such channel is configured: add channels.pagerduty to the settings",
    )


def test_a_rules_own_template_applies_to_mail_only() -> None:
    notification = a_notification("#dev", "who@x.com", channel="slack").model_copy(update={"template": "<p>hi</p>"})
    one, other = a_planner().plan(an_event(), [Rule(notification, "test")], now=NOW)
    assert (one.template, other.template) == (None, "<p>hi</p>")


def test_the_same_message_is_rendered_once() -> None:
    rendered = []

    def render(channel: str, *_: Any, **__: Any) -> dict[str, Any]:
        rendered.append(channel)
        return {}

    rules = [a_rule("#dev", "#ops", channel="slack"), a_rule("a@x.com"), a_rule("b@x.com")]
    filled = Contents(render).fill(an_event(), a_planner().plan(an_event(), rules, now=NOW))
    assert rendered == ["slack", "email"]
    assert [delivery.content for delivery in filled] == [{}] * 4


def a_planner_with_fallback_recipients(**fallback: list[str]) -> Planner:
    contacts = some_contacts(oncall=fallback)
    return a_planner(contacts=contacts, fallback_recipients={"slack": ["oncall"]}, fallbacks={})


def test_the_fallback_recipients_are_notified_of_an_undeliverable_delivery() -> None:
    planner = a_planner_with_fallback_recipients(email=["oncall@x.com"], slack=["#ops"])
    rule = a_rule("#dev", "#nowhere", "#nobody", channel="slack")
    dev, nowhere, _, mail, message = planner.plan(an_event(), [rule], now=NOW)

    assert (dev.state, nowhere.state) == (WAITING, DEAD)
    for notice, address in ((mail, "oncall@x.com"), (message, "C2")):
        assert (notice.state, notice.addresses, notice.fallback_for) == (WAITING, (address,), nowhere.key)
        (unchanged,) = CONTENTS.fill(an_event(), [notice])
        assert unchanged.content is None  # the worker renders a notice
        text = CONTENTS.content(an_event(), notice)["undelivered"]
        assert text.startswith("#nowhere could not be notified through slack: neither")


CONTENTS = Contents(lambda *_, undelivered="", **__: {"undelivered": undelivered})


def test_a_fallback_recipient_gets_one_notice_per_event_besides_its_own_notification() -> None:
    planner = a_planner_with_fallback_recipients(email=["OnCall@x.com"])
    rules = [a_rule("oncall@x.com"), a_rule("#nowhere", channel="slack")]
    own, dead, notice = planner.plan(an_event(), rules, now=NOW)
    (again,) = planner.notify_fallback(an_event(), a_delivery(channel="slack", to="#dev"), now=NOW)

    assert (own.addresses, notice.addresses) == (("oncall@x.com",), ("oncall@x.com",))
    assert len({own.key, dead.key, notice.key}) == 3
    assert again.key == notice.key  # so the ledger keeps only the first


def test_there_is_no_notice_about_a_failed_notice() -> None:
    planner = a_planner_with_fallback_recipients(email=["oncall@x.com"])
    notice = a_delivery(channel="slack", to="#dev", fallback_for="another")
    assert planner.notify_fallback(an_event(), notice, now=NOW) == ()


def test_unknown_contacts_are_reported() -> None:
    planner = a_planner(
        contacts=some_contacts(oncall={"email": ["x"]}), fallback_recipients={"slack": ["On-call", "x"]}
    )
    assert list(planner.unreachable()) == [
        "channels.slack.fallback_recipients: there is no contact 'On-call': did you mean oncall?",
        "channels.slack.fallback_recipients: there is no contact 'x': there are oncall",
    ]


def test_a_delivery_to_an_unknown_recipient_is_rerouted_unless_the_address_is_notified_already() -> None:
    lost = a_delivery(channel="slack", to="who@x.com")
    (mail,) = a_planner().reroute(an_event(), lost, [], now=NOW)
    assert (mail.channel, mail.addresses) == ("email", ("who@x.com",))
    (again,) = a_planner().reroute(an_event(), lost, [], now=NOW + SECOND)
    assert again.key == mail.key  # so the ledger keeps one if two replicas reroute it
    assert a_planner().reroute(an_event(), lost, [("email", "who@x.com")], now=NOW) == ()
    assert a_planner(fallbacks={}).reroute(an_event(), lost, [], now=NOW) == ()


recipients = st.lists(
    st.sampled_from(["a@x.com", "A@x.com", "b@x.com", "#dev", "C1", "#ops", "bad"]), min_size=1, max_size=5
)
rules = st.builds(
    lambda who, channel: a_rule(*who, channel=channel), recipients, st.sampled_from(["email", "slack", "pagerduty"])
)


@given(st.lists(rules, max_size=5))
def test_every_recipient_has_exactly_one_delivery_and_keys_are_stable(given_rules: list[Rule]) -> None:
    planner = a_planner()
    deliveries = planner.plan(an_event(), given_rules, now=NOW)

    notified = [(delivery.channel, address) for delivery in deliveries for address in delivery.addresses]
    assert len(notified) == len(set(notified))
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


# -- threads


def a_threading_planner(unit: str | None = "launch_plan", **changes: Any) -> Planner:
    return a_planner(thread_by={"slack": lambda _: unit}, **changes)


def threads_of(planner: Planner, *recipients: str, **facts: Any) -> list[str]:
    """The threads of a Slack rule's deliveries."""
    facts = {"launch_plan": a_launch_plan(), **facts}
    rule = a_rule(*(recipients or ("#dev",)), channel="slack", phases=tuple(TERMINAL))
    return [delivery.thread for delivery in planner.plan(an_event(**facts), [rule], now=NOW)]


def test_one_thread_is_for_a_launch_plan_in_any_version_and_one_address() -> None:
    planner = a_threading_planner()
    (one,) = threads_of(planner)
    assert one
    assert [one] == threads_of(planner, name="another-run")
    assert [one] == threads_of(planner, launch_plan=a_launch_plan(version="v9"), phase=Phase.TIMED_OUT)
    others = [*threads_of(planner, "#ops"), *threads_of(planner, launch_plan=a_launch_plan("other"))]
    assert len({one, *others}) == 3


def test_one_thread_is_for_an_execution_if_the_settings_say_so() -> None:
    planner = a_threading_planner("execution")
    assert threads_of(planner) == threads_of(planner, phase=Phase.ABORTED) != threads_of(planner, name="another-run")


def test_successes_and_events_without_a_launch_plan_have_no_thread() -> None:
    assert threads_of(a_threading_planner(None)) == threads_of(a_planner()) == [""]
    assert threads_of(a_threading_planner(), phase=Phase.SUCCEEDED) == [""]
    assert threads_of(a_threading_planner(), launch_plan=None) == [""]
    (mail,) = a_threading_planner().plan(an_event(), [a_rule("a@x.com")], now=NOW)
    assert (mail.thread, mail.thread_at, mail.subject) == ("", None, "")


def test_an_execution_thread_is_about_the_origin_and_needs_no_launch_plan() -> None:
    planner = a_threading_planner("execution")
    first, event = an_event(name="first"), an_event(name="again")
    again = event.model_copy(update={"reference_execution": first.execution, "origin": first.execution})
    rule = a_rule("#dev", channel="slack")
    (one,) = planner.plan(first, [rule], now=NOW)
    (other,) = planner.plan(again, [rule], now=NOW)
    assert (one.thread, one.subject) == (other.thread, other.subject)
    assert one.subject == execution_subject(first.execution)
    (alone,) = planner.plan(event, [rule], now=NOW)
    assert alone.subject == execution_subject(event.execution)


def test_a_success_ends_threads_about_its_launch_plan_and_its_origin_at_its_start() -> None:
    planner = a_threading_planner()
    first = ExecutionId(project="flytesnacks", domain="production", name="first")
    event = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan())
    success = planner.success(event, now=NOW)
    assert success is not None
    assert success.subjects == ("flytesnacks/production/train.daily",)
    assert success.started_at == event.occurred_at  # no start is known
    relaunch = event.model_copy(update={"origin": first, "started_at": event.occurred_at - SECOND})
    success = planner.success(relaunch, now=NOW)
    assert success is not None
    assert success.subjects == ("flytesnacks/production/train.daily", execution_subject(first))
    assert success.started_at == event.occurred_at - SECOND
    late_clock = event.model_copy(update={"started_at": event.occurred_at + SECOND})
    success = planner.success(late_clock, now=NOW)
    assert success is not None
    assert success.started_at == event.occurred_at


def test_a_time_in_the_future_counts_as_now_in_a_thread_but_a_clock_may_be_ahead_a_little() -> None:
    planner = a_threading_planner()
    for ahead, counted in ((timedelta(seconds=59), timedelta(seconds=59)), (timedelta(days=365), timedelta())):
        failure = an_event(launch_plan=a_launch_plan()).model_copy(update={"occurred_at": NOW + ahead})
        (delivery,) = planner.plan(failure, [a_rule("#dev", channel="slack")], now=NOW)
        assert delivery.thread_at == NOW + counted
        success = planner.success(failure.model_copy(update={"phase": Phase.SUCCEEDED}), now=NOW)
        assert success is not None
        assert success.started_at == NOW + counted


def test_each_resolved_notice_has_its_own_key_and_stands_in_its_thread_at_the_start_of_the_run() -> None:
    planner = a_threading_planner()
    event = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan())
    event = event.model_copy(update={"started_at": event.occurred_at - SECOND})
    success = planner.success(event, now=NOW)
    assert success is not None
    notices = [
        success.resolved_notice(
            OpenThread(channel="slack", recipients=("#dev",), addresses=("C1",), thread=thread, event="p/d/n/FAILED"),
            success.subjects[0],
        )
        for thread in ("one", "two")
    ]
    assert [(one.kind, one.thread, one.thread_at, one.addresses, one.event, one.content) for one in notices] == [
        (Kind.RESOLVED_NOTICE, "one", event.started_at, ("C1",), event.key, None),
        (Kind.RESOLVED_NOTICE, "two", event.started_at, ("C1",), event.key, None),
    ]
    assert len({one.key for one in notices}) == 2
    (delivery,) = planner.plan(event, [a_rule("C1", channel="slack")], now=NOW)
    assert {one.key[:5] for one in notices} == {
        delivery.key[:5]
    }  # the same time prefix, so they are next to each other in the index


def test_an_event_that_ends_no_thread_is_no_success() -> None:
    success = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan())
    assert a_planner().success(success, now=NOW) is not None  # it may drop held failures
    assert a_threading_planner().success(an_event(launch_plan=a_launch_plan()), now=NOW) is None
    assert a_threading_planner().success(an_event(Phase.SUCCEEDED), now=NOW) is None


def test_a_new_version_gives_each_recipient_of_any_rule_one_change_event() -> None:
    planner = a_planner(change_events=frozenset({"slack"}))
    event = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan(version="v2"))
    rules = [a_rule("#dev", "#nobody", channel="slack"), a_rule("C1", "#ops", channel="slack"), a_rule("a@x.com")]

    run = planner.new_version(event, rules, now=NOW)

    assert run is not None
    assert (run.launch_plan, run.version) == ("flytesnacks/production/train.daily", "v2")
    change_events = run.change_events
    assert [(one.addresses, one.kind, one.thread) for one in change_events] == [
        (("C1",), Kind.CHANGE_EVENT, ""),
        (("C2",), Kind.CHANGE_EVENT, ""),
    ]
    contents = Contents(lambda *_, **__: {}, change_event=lambda channel, event: {"of": event.key, "on": channel})
    assert contents.content(event, change_events[0]) == {"of": event.key, "on": "slack"}
    assert not {one.key for one in change_events} & {one.key for one in planner.plan(event, rules, now=NOW)}
    assert planner.new_version(event, rules[2:], now=NOW) is None
    assert planner.new_version(an_event(Phase.SUCCEEDED), rules, now=NOW) is None


def test_a_slack_channels_mail_address_gets_a_mail_whatever_the_fallback() -> None:
    def slack(recipient: str) -> str:
        return SlackChannel(SlackConfig.model_validate({"token": "t", "recipients": {"#dev": MAILBOX}})).address(
            recipient
        )

    rule = a_rule(MAILBOX, "#dev", "C0000001", channel="slack")
    planner = a_planner(addresses={"email": mail_address, "slack": slack}, fallbacks={})
    assert planned(rule, planner=planner) == [("email", (MAILBOX,), WAITING), ("slack", ("C0000001",), WAITING)]
    planner = a_planner(addresses={"slack": slack}, fallbacks={})
    assert [state for _, _, state in planned(rule, planner=planner)] == [DEAD, DEAD, WAITING]


MAILBOX = "alerts-aaaabbbb@team.slack.com"


# -- contacts

ML = {"slack": ["#dev", "#nowhere"], "email": ["a@x.com", "b@x.com"]}


def test_a_contacts_name_means_all_its_recipients_on_whatever_channel_a_rule_names_it() -> None:
    planner = a_planner(contacts=some_contacts(ml=ML, **{"c@x.com": {"slack": ["#ops"]}}), fallbacks={})
    everybody = [
        ("slack", ("C1",), WAITING),
        ("slack", ("#nowhere",), DEAD),
        ("email", ("a@x.com", "b@x.com"), WAITING),
    ]
    for channel in ("email", "slack", "pagerduty", ""):
        assert planned(a_rule("ml", channel=channel), planner=planner) == everybody
    assert planned(a_rule("ML"), planner=planner) == [("email", ("ML",), DEAD)]
    assert planned(a_rule("c@x.com", "d@x.com"), planner=planner) == [
        ("slack", ("C2",), WAITING),
        ("email", ("d@x.com",), WAITING),
    ]


def test_an_address_that_is_named_directly_and_by_a_contact_is_notified_once_and_lists_both_rules() -> None:
    planner = a_planner(contacts=some_contacts(ml=ML), fallbacks={})
    rules = [a_rule("B@x.com", "c@x.com", defined_at="one"), a_rule("ml", channel="", defined_at="two")]
    deliveries = planner.plan(an_event(), rules, now=NOW)
    assert [(one.recipients, [*map(str, one.rules)]) for one in deliveries] == [
        (("B@x.com", "c@x.com"), ["one", "two"]),
        (("#dev",), ["two"]),
        (("#nowhere",), ["two"]),
        (("a@x.com",), ["two"]),
    ]


def test_a_delivery_has_the_highest_severity_that_a_rule_or_its_contact_gives_and_mails_are_split_by_it() -> None:
    def rule(*recipients: str, severity: str = "", channel: str = "email") -> Rule:
        return Rule(a_notification(*recipients, channel=channel), "test", name="route", severity=severity)

    ml = Contact((("email", "ml@x.com"), ("slack", "#dev")), options=Options(severity="warning"))
    fallback = Contact((("email", "oncall@x.com"),), options=Options(severity="error"))
    planner = a_planner(
        contacts=Contacts({"ml": ml, "oncall": fallback}, slack_or_mail),
        fallback_recipients={"slack": ["oncall"]},
        fallbacks={},
    )
    rules = [
        rule("a@x.com", "b@x.com", "c@x.com", "ML@x.com", "oncall@x.com"),
        rule("B@x.com", "ml", severity="info"),
        rule("b@x.com", severity="critical"),
        rule("#dev", "#nowhere", severity="error", channel="slack"),
    ]
    severities = {one.recipients: one.severity for one in planner.plan(an_event(), rules, now=NOW)}
    assert severities == {
        ("a@x.com", "c@x.com"): "",
        ("b@x.com",): "critical",
        ("ML@x.com",): "warning",
        ("oncall@x.com",): "error",  # its own notification, and the notice
        ("#dev",): "error",
        ("#nowhere",): "error",
    }
    lost = a_delivery(channel="slack", to="ml@x.com", severity="info", rules=(RuleRef("", "one"), RuleRef("r", "two")))
    (rerouted,) = a_planner(contacts=planner.contacts).reroute(an_event(), lost, [], now=NOW)
    assert (rerouted.severity, rerouted.rules) == ("warning", lost.rules)


def slack_or_mail(channel: str, recipient: str) -> Target:
    address = {"email": mail_address, "slack": slack_address}[channel](recipient)
    return Target(channel, recipient, address)


def test_a_contact_gets_change_events_on_the_channels_that_have_them() -> None:
    planner = a_planner(contacts=some_contacts(ml=ML), change_events=frozenset({"slack"}))
    event = an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan(version="v2"))
    run = planner.new_version(event, [a_rule("ml"), a_rule("C1", channel="slack")], now=NOW)
    assert run is not None
    assert [one.addresses for one in run.change_events] == [("C1",)]
