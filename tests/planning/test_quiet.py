"""Which quiet hours hold a planned delivery, and which deliveries may enter a digest."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.holding.windows import QuietHours
from dispatcher.model.delivery import Delivery, Kind, RuleRef
from dispatcher.model.event import CANARY_DOMAIN, CANARY_PROJECT, Event, ExecutionId
from dispatcher.model.hold import DigestOptions, Quiet
from dispatcher.model.phase import Phase
from dispatcher.planning.contacts import Contact, Contacts, Options
from dispatcher.planning.planner import Planner
from dispatcher.rules import Route, RouteBook, Rule
from tests.support.builders import (
    NOW,
    a_delivery,
    a_digest,
    a_launch_plan,
    a_notification,
    a_route,
    a_rule,
    an_event,
    quiet_hours,
)

MORNING = {"from": "08:00", "to": "10:00"}
"""NOW is 09:14."""
TEN, TWELVE = NOW.replace(hour=10, minute=0, second=0), NOW.replace(hour=12, minute=0, second=0)
OF_ML = quiet_hours("contact ml", **MORNING)
LONGER = quiet_hours("route longer", **{"from": "09:00", "to": "12:00"})
SHORTER = quiet_hours("route shorter", **MORNING)
OVER = quiet_hours("route over", **{"from": "06:00", "to": "09:00"})
DIGEST = DigestOptions(3, timedelta(minutes=10), timedelta(minutes=15))


def a_contact(*recipients: str, channel: str = "email", **options: Any) -> Contact:
    return Contact(tuple((channel, one) for one in recipients), options=Options(**options))


def a_planner(**contacts: Contact) -> Planner:
    channels = ("email", "slack", "pagerduty")
    return Planner(
        addresses=dict.fromkeys(channels, str),
        fallbacks={},
        grouped=frozenset({"email"}),
        contacts=Contacts(contacts),
        change_events=frozenset({"pagerduty"}),
        paging=frozenset({"pagerduty"}),
        fallback_recipients={"slack": [*contacts][:1]},
    )


def of_route(*recipients: str, quiet: QuietHours | None = None, severity: str = "", channel: str = "email") -> Rule:
    name = quiet.by if quiet is not None else "always"
    return Rule(a_notification(*recipients, channel=channel), f"{name}.yaml", name=name, severity=severity, quiet=quiet)


def held(planner: Planner, *rules: Rule, event: Event | None = None) -> dict[tuple[str, ...], Quiet | None]:
    return {one.recipients: one.quiet for one in planner.plan(event or an_event(), rules, now=NOW)}


def test_a_contacts_quiet_hours_hold_each_message_to_its_own_addresses_and_mails_go_to_each_alone() -> None:
    planner = a_planner(ml=a_contact("a@x.com", "b@x.com", quiet=OF_ML), later=a_contact("c@x.com", quiet=OVER))
    rule = a_rule("a@x.com", "b@x.com", "c@x.com", "d@x.com", "e@x.com")
    until_ten = Quiet(TEN, "contact ml")
    assert held(planner, rule) == {
        ("a@x.com",): until_ten,
        ("b@x.com",): until_ten,
        ("c@x.com",): None,
        ("d@x.com", "e@x.com"): None,
    }
    assert held(planner, rule, of_route("b@x.com", severity="critical"))["b@x.com",] is None
    assert held(planner, rule, of_route("b@x.com", severity="error"))["b@x.com",] == until_ten


def test_a_routes_quiet_hours_hold_only_what_no_other_matching_rule_lets_through() -> None:
    planner = a_planner()
    longer, shorter, over = (of_route("a@x.com", "b@x.com", quiet=one) for one in (LONGER, SHORTER, OVER))
    always = of_route("b@x.com")
    assert held(planner, longer) == {
        ("a@x.com",): Quiet(TWELVE, "route longer"),
        ("b@x.com",): Quiet(TWELVE, "route longer"),
    }
    assert held(planner, longer, shorter)["a@x.com",] == Quiet(TEN, "route shorter")
    assert held(planner, longer, over) == {("a@x.com",): None, ("b@x.com",): None}
    assert held(planner, longer, always) == {("a@x.com",): Quiet(TWELVE, "route longer"), ("b@x.com",): None}
    assert held(planner, a_rule("a@x.com"), longer)["a@x.com",] is None  # Flyte's own rules have no quiet hours
    of_both = a_planner(ml=a_contact("a@x.com", quiet=OF_ML))
    assert held(of_both, longer)["a@x.com",] == Quiet(TWELVE, "route longer")
    assert held(of_both, longer, of_route("a@x.com"))["a@x.com",] == Quiet(TEN, "contact ml")


def test_notices_about_dead_deliveries_are_held_unless_these_were_critical() -> None:
    planner = a_planner(oncall=a_contact("oncall@x.com", quiet=OF_ML, digest=DIGEST))
    dead = a_delivery(channel="slack", to="#gone", reason="no such channel")
    (notice,) = planner.notify_fallback(an_event(), dead, now=NOW)
    assert (notice.kind, notice.quiet, notice.digest) == (Kind.FALLBACK_NOTICE, Quiet(TEN, "contact ml"), DIGEST)
    (notice,) = planner.notify_fallback(an_event(), dead._replace(severity="critical"), now=NOW)
    assert (notice.quiet, notice.digest, notice.severity) == (None, DIGEST, "critical")
    assert planner.still_quiet(notice, RouteBook(), now=NOW) is None  # at the end of a silence, too
    for severity, quiet in (("error", Quiet(TEN, "contact ml")), ("critical", None)):
        (notice,) = planner.notify_fallback(None, a_digest(to="#gone", severity=severity), now=NOW)
        assert (notice.kind, notice.quiet, notice.digest) == (Kind.FALLBACK_NOTICE, quiet, DIGEST)
    for kind in (Kind.REFUSED_NOTICE, Kind.ACCEPTED_NOTICE):
        (notice,) = planner.notify_of_channel(an_event(), dead._replace(severity="critical"), kind, NOW, now=NOW)
        assert (notice.quiet, notice.digest, notice.severity) == (None, None, "")


def test_canaries_and_change_events_are_never_held() -> None:
    planner = a_planner(ml=a_contact("svc", channel="pagerduty", quiet=OF_ML, digest=DIGEST))
    canary = ExecutionId(project=CANARY_PROJECT, domain=CANARY_DOMAIN, name="c1")
    rule = a_rule("ml", channel="")
    assert held(planner, rule, event=an_event()) == {("svc",): Quiet(TEN, "contact ml")}
    (sent,) = planner.plan(an_event().model_copy(update={"execution": canary}), [rule], now=NOW)
    assert (sent.quiet, sent.digest) == (None, None)
    run = planner.new_version(an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan(version="v2")), [rule], now=NOW)
    assert run is not None
    assert [one.quiet for one in run.change_events] == [None]


def test_what_is_sent_in_place_of_another_delivery_is_held_by_its_own_contact_alone() -> None:
    planner = a_planner(ml=a_contact("a@x.com", quiet=OF_ML), ops=a_contact("b@x.com"))
    of_longer = (RuleRef(LONGER.by, "longer.yaml"),)
    for to, quiet in (("a@x.com", Quiet(TEN, "contact ml")), ("b@x.com", None)):
        lost = a_delivery(channel="slack", to=to, rules=of_longer)
        (rerouted,) = Planner(planner.addresses, {"slack": "email"}, contacts=planner.contacts).reroute(
            an_event(), lost, [], now=NOW
        )
        assert rerouted.quiet == quiet


def test_what_is_sent_in_place_of_a_page_counts_what_the_page_would_have_counted() -> None:
    note = "held 22:00-07:00 (quiet hours of contact ml); 3 more failures of the launch plan in this time"
    page = a_delivery(channel="slack", to="a@x.com", note=note)
    planner = a_planner(ml=a_contact("a@x.com"))
    planner = replace(planner, fallbacks={"slack": "email"})
    assert [one.note for one in planner.reroute(an_event(), page, [], now=NOW)] == [note]
    assert [one.note for one in planner.notify_fallback(an_event(), page, now=NOW)] == [note]
    refused = planner.notify_of_channel(an_event(), page, Kind.REFUSED_NOTICE, NOW, now=NOW)
    assert [one.note for one in refused] == [""]


def test_a_contacts_digests_are_for_its_own_addresses_on_channels_that_do_not_page() -> None:
    recipients = (("email", "a@x.com"), ("email", "b@x.com"), ("slack", "#ml"), ("pagerduty", "svc"))
    planner = a_planner(ml=Contact(recipients, options=Options(digest=DIGEST)))
    deliveries = planner.plan(an_event(), [a_rule("ml", "c@x.com", "d@x.com")], now=NOW)
    assert {one.recipients: one.digest for one in deliveries} == {
        ("a@x.com",): DIGEST,
        ("b@x.com",): DIGEST,
        ("#ml",): DIGEST,
        ("svc",): None,
        ("c@x.com", "d@x.com"): None,
    }


def test_at_the_end_of_a_hold_the_windows_in_effect_decide() -> None:
    planner = a_planner(ml=a_contact("a@x.com", quiet=OF_ML))

    def still(delivery: Delivery, *routes: Route, at: Any = NOW) -> Quiet | None:
        return planner.still_quiet(delivery, RouteBook(routes), now=at)

    of_longer = RuleRef("longer", "longer.yaml")
    mine, other = a_delivery(to="a@x.com", rules=(of_longer,)), a_delivery(to="b@x.com", rules=(of_longer,))
    route = a_route("longer", quiet=LONGER)
    assert still(mine, route) == still(other, route) == Quiet(TWELVE, "route longer")
    assert still(mine) == Quiet(TEN, "contact ml")  # the route is gone
    assert still(mine, at=TEN) is None
    assert still(other, a_route("longer")) is None
    assert still(other._replace(rules=(of_longer, RuleRef("", "options[0]"))), route) is None
    assert still(mine._replace(severity="critical"), route) is None
    a_digest_or_summary = mine._replace(event="", rules=())
    assert still(a_digest_or_summary, route) == Quiet(TEN, "contact ml")


some_quiet_hours = st.builds(
    lambda start, length: quiet_hours("x", **{"from": f"{start:02}:00", "to": f"{(start + length) % 24:02}:00"}),
    st.integers(0, 23),
    st.integers(1, 23),
)
"""Of one window of whole hours."""


@given(
    st.lists(st.one_of(st.none(), some_quiet_hours), min_size=1, max_size=4),
    st.one_of(st.none(), some_quiet_hours),
    st.sampled_from(["", "error", "critical"]),
    st.integers(0, 24 * 60),
)
def test_a_delivery_goes_at_once_if_its_contact_is_open_and_one_rule_lets_it_through(
    rules: list[QuietHours | None], own: QuietHours | None, severity: str, minutes: int
) -> None:
    now = NOW + timedelta(minutes=minutes)

    def open_at(hours: QuietHours | None) -> bool:
        return hours is None or hours.next_opening(now) == now

    planner = a_planner(ml=a_contact("a@x.com", quiet=own))
    matched = [
        replace(of_route("a@x.com", quiet=one, severity=severity if at == 0 else ""), name=f"r{at}")
        for at, one in enumerate(rules)
    ]
    (delivery,) = planner.plan(an_event(), matched, now=now)
    goes = severity == "critical" or (open_at(own) and any(map(open_at, rules)))
    assert (delivery.quiet is None) == goes
