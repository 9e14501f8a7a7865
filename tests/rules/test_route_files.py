"""Routes from files: what a route may say, the messages about invalid ones, and which routes hold after an edit."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dispatcher.model.phase import Phase
from dispatcher.rules import Route
from dispatcher.rules.files import RuleFiles
from dispatcher.rules.owners import Owners
from dispatcher.rules.route_files import Names

NAMES = Names({"ml-team": 3, "night-shift": 1, "everybody": 900}, frozenset({"email", "slack", "pagerduty"}))
ROUTE = "  - {name: NAME, match: {phase: FAILED}, notify: [ml-team]}\n"


def a_route(name: str, **fields: str) -> str:
    others = "".join(f", {field}: {value}" for field, value in fields.items())
    return f"  - {{name: {name}, match: {{phase: FAILED}}, notify: [ml-team]{others}}}\n"


def loaded(*paths: Path) -> RuleFiles:
    files = RuleFiles((), paths, NAMES)
    files.load()
    return files


def problems(files: RuleFiles) -> list[str]:
    return [f"{problem.file.name}:{problem.line}: {problem.message}" for problem in files.problems]


def names(files: RuleFiles) -> list[str]:
    return [route.name for route in files.book.routes.routes]


def only(files: RuleFiles) -> Route:
    (route,) = files.book.routes.routes
    return route


def test_a_route_becomes_one_rule_for_its_contacts_and_one_for_each_channel(tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text(
        "routes:\n"
        "  - name: production-failures\n"
        "    match: {project: [fraud-*, flytesnacks], domain: production, phase: [FAILED, timed_out]}\n"
        "    notify: [ml-team, {email: audit@example.com, pagerDuty: [ml]}, {email: [b@example.com]}, night-shift]\n"
        "    severity: critical\n"
        "    stop: true\n"
        "    rules: replace\n"
    )

    files = loaded(tmp_path)

    assert files.problems == ()
    route = only(files)
    assert (route.stop, route.replaces, route.recipients) == (True, True, 3 + 1 + 3)
    assert [(rule.notification.channel, rule.notification.recipients) for rule in route.rules] == [
        ("", ("ml-team", "night-shift")),
        ("email", ("audit@example.com", "b@example.com")),
        ("pagerduty", ("ml",)),
    ]
    for rule in route.rules:
        assert rule.notification.phases == (Phase.FAILED, Phase.TIMED_OUT)
        assert (rule.name, rule.severity) == ("production-failures", "critical")
        assert rule.defined_at == f"{tmp_path / 'routes.yaml'}:2"


def test_routes_apply_in_the_order_of_the_settings_then_of_paths_then_of_lines(tmp_path: Path) -> None:
    for file, content in {
        "teams/z.yaml": a_route("five"),
        "teams/b/x.json": '{"routes": [{"name": "four", "match": {"phase": "FAILED"}, "notify": ["ml-team"]}]}',
        "platform/b.yml": f"{a_route('two')}{a_route('three')}---\nroutes:\n{a_route('three-more')}",
        "platform/a.yaml": a_route("one"),
        "platform/notes.txt": "nothing",
        "platform/empty.yaml": "# nothing yet",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content if content[0] in "{#n" else f"routes:\n{content}")

    files = loaded(tmp_path / "platform", tmp_path / "teams")

    assert (names(files), files.problems) == (["one", "two", "three", "three-more", "four", "five"], ())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- {name: a}", "a.yaml:1: a file of routes has only the key routes"),
        ("routes: []\nroute: []", "a.yaml:1: a file of routes has only the key routes"),
        ("launch_plan: {name: lp}\nnotifications: []", "a.yaml:1: a file of routes has only the key routes"),
        ("routes:\n  a: 1", "a.yaml:2: routes must be a list"),
        ("routes: [", "a.yaml:2: broken YAML"),
        ("routes: [3]", "a.yaml:1: route 1: must be a mapping"),
        (f"routes:\n{ROUTE}{ROUTE}", "a.yaml:3: route 'NAME': "),
        ("routes:\n  - name: x\n    match: {phase: FAILED}", "a.yaml:2: route 'x': notify: must be set"),
        (
            "routes:\n  - name: x\n    notify: [ml-team]\n    match: {project: p}",
            "a.yaml:4: route 'x': match.phase: name",
        ),
        (
            "routes:\n  - name: x\n    notify: [ml-team]\n    match:\n      project: p\n      phase: RUNNING",
            "a.yaml:6: route 'x': match.phase.0: RUNNING is not a terminal phase",
        ),
        (
            "routes:\n" + a_route("x").replace("phase:", "phases:"),
            "match.phases: unknown option: did you mean 'phase'?",
        ),
        ("routes:\n" + a_route("x", owner="ml"), "route 'x': owner: unknown option: there are name, match, notify"),
        (
            "routes:\n" + a_route("x").replace("notify", "notfy"),
            "route 'x': notfy: unknown option: did you mean 'notify'?",
        ),
        (
            "routes:\n  - {name: x, match: {phase: FAILED, not: {eror: {code: a}}}, notify: [ml-team]}",
            "match.not.eror: unknown option: did you mean 'error'?",
        ),
        ("routes:\n" + a_route("x", streak="0"), "route 'x': streak: must be greater than or equal to 1"),
        ("routes:\n" + a_route("x", streak="101"), "route 'x': streak: must be less than or equal to 100"),
        ("routes:\n" + a_route("x", streak="true"), "route 'x': streak: must be a whole number"),
        ("routes:\n" + a_route("x", streak="'3'"), "route 'x': streak: must be a whole number"),
        ("routes:\n" + a_route("x", on="failed"), "route 'x': on: must be 'resolved'"),
        (
            "routes:\n  - name: x\n    notify: [ml-team]\n    on: resolved\n    match: {phase: FAILED}",
            "a.yaml:5: route 'x': match.phase: on: resolved stands in its place: leave one of them out",
        ),
        ("routes:\n  - {name: x, notify: [ml-team], on: resolved, match: {}}", "route 'x': match: has no key"),
        ("routes:\n  - {name: x, notify: [ml-team], on: resolved}", "route 'x': match: must be set"),
        (
            "routes:\n" + a_route("x", streak="2").replace("FAILED", "[FAILED, SUCCEEDED]"),
            "route 'x': match.phase: a streak has no success: write on: resolved instead of phase",
        ),
        ("routes:\n" + a_route("x", stop="maybe"), "route 'x': stop: must be"),
        ("routes:\n" + a_route("x", rules="keep"), "route 'x': rules: must be 'add' or 'replace'"),
        ("routes:\n" + a_route("x", severity="high"), "route 'x': severity: must be 'critical', 'error'"),
        (
            "routes:\n  - name: x\n    match: {phase: FAILED}\n    notify: [ml-team]\n    quiet: {zone: UTC}",
            "a.yaml:5: route 'x': quiet: from mon on, it leaves no opening within holds.longest: messages are held",
        ),
        (
            "routes:\n" + a_route("x", severity="critical", quiet="{days: sat, zone: UTC}"),
            "route 'x': quiet: it has no effect, because severity critical passes quiet hours",
        ),
        ("routes:\n" + a_route("x", quiet="{days: sat}"), "route 'x': quiet.0.zone: must be set"),
        ("routes:\n" + a_route("12"), "route 1: name: a number where text is expected: quote it"),
        ("routes:\n" + a_route("''"), "name: must not be empty"),
        ("routes:\n" + a_route("x" * 101), "name: must have at most 100 characters"),
        ("routes:\n" + a_route('"a\\nb"'), "name: no control characters may be in it"),
        ("routes:\n" + a_route("' a'"), "name: no control characters may be in it, and no spaces around it"),
        ("routes:\n" + a_route("x").replace("ml-team", "owner"), "notify: owner: the settings have no section owners"),
        ("routes:\n" + a_route("x").replace("ml-team", "ml_team"), "'ml_team': did you mean ml-team?"),
        (
            "routes:\n" + a_route("x").replace("ml-team", "{emial: a@b}"),
            "there is no channel 'emial': did you mean email?",
        ),
        ("routes:\n" + a_route("x").replace("ml-team", "{email: []}"), "route 'x': notify: recipients: no recipients"),
        ("routes:\n" + a_route("x").replace("ml-team", "{email: ''}"), "route 'x': notify: recipients: an empty"),
        ("routes:\n" + a_route("x").replace("ml-team", "{email: 7}"), "route 'x': notify.0.email: must be a list"),
        ("routes:\n" + a_route("x").replace("ml-team", "7"), "notify.0: a number where text is expected"),
        ("routes:\n" + a_route("x").replace("ml-team", "{}"), "notify.0: write a contact's name, or a channel"),
        ("routes:\n" + a_route("x").replace("ml-team", "{'': [ml-team]}"), "notify.0: write a contact's name, or a"),
        (
            "routes:\n" + a_route("x").replace("ml-team", "{pager_duty: [a], pagerduty: [b]}"),
            "notify.0: two names of the same channel: keep one of them",
        ),
        ("routes:\n" + a_route("x").replace("ml-team", ""), "route 'x': notify: must not be empty"),
        (
            "routes:\n" + a_route("x").replace("ml-team", "everybody, {email: [" + "a@example.com, " * 101 + "]}"),
            "route 'x': it has 1,001 recipients: at most 1,000 are allowed",
        ),
        (
            "routes:\n" + a_route("x").replace("FAILED", "FAILED, labels: {team: 7}"),
            "route 'x': match.labels.team: a number",
        ),
    ],
)
def test_an_invalid_route_is_reported_with_file_and_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    (line,) = problems(loaded(tmp_path))
    assert words in line


def test_a_route_may_have_quiet_hours(tmp_path: Path) -> None:
    night = "{from: '22:00', to: '07:00', zone: Europe/Berlin}"
    (tmp_path / "a.yaml").write_text(
        f"routes:\n{a_route('night', quiet=night)}{a_route('both', quiet=f'[{night}, {{days: sat-sun, zone: UTC}}]')}"
        f"{a_route('never')}"
    )
    routes = loaded(tmp_path).book.routes
    shown = [str(route.quiet) for route in routes.routes]
    assert shown == ["22:00-07:00 Europe/Berlin", "22:00-07:00 Europe/Berlin; sat-sun all day UTC", "None"]
    quiet = routes.quiet("both")
    assert quiet is not None
    assert quiet.by == "route both"
    assert routes.quiet("gone") is None
    again = {"name": "again", "match": {"phase": "FAILED"}, "notify": ["ml-team"]}
    shown_data = routes.routes[1].as_data()["quiet"]
    (tmp_path / "b.json").write_text(json.dumps({"routes": [{**again, "quiet": shown_data}]}))
    assert str(loaded(tmp_path).book.routes.quiet("again")) == shown[1]


def test_a_route_may_wait_for_a_streak_or_for_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        f"routes:\n{a_route('any')}{a_route('third', streak='3')}"
        "  - {name: over, on: resolved, match: {domain: production}, notify: [ml-team]}\n"
        "  - {name: long, 'on': resolved, streak: 5, match: {domain: production}, notify: [ml-team]}\n"
    )
    (tmp_path / "b.json").write_text(
        '{"routes": [{"name": "json", "on": "resolved", "match": {"project": "p"}, "notify": ["ml-team"]}]}'
    )

    files = loaded(tmp_path)

    assert files.problems == ()
    assert {route.name: (route.streak, route.at_the_end, route.match.phase) for route in files.book.routes.routes} == {
        "any": (0, False, (Phase.FAILED,)),
        "third": (3, False, (Phase.FAILED,)),
        "over": (1, True, (Phase.SUCCEEDED,)),
        "long": (5, True, (Phase.SUCCEEDED,)),
        "json": (1, True, (Phase.SUCCEEDED,)),
    }
    assert files.book.routes.counts_streaks


def test_an_invalid_route_is_refused_alone_and_the_old_one_of_its_name_holds_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    good = [a_route(name) for name in ("one", "two", "three")]
    file.write_text("routes:\n" + "".join(good))
    files = loaded(tmp_path)

    edited = [a_route("new"), good[0], good[1].replace("FAILED", "RUNNING"), a_route("never", sotp="true"), good[2]]
    file.write_text("routes:\n" + "".join(edited))
    assert files.load()
    assert [line.partition(":")[0] + line.partition(":")[2][:2] for line in problems(files)] == ["a.yaml4:", "a.yaml5:"]
    assert names(files) == ["new", "one", "two", "three"]
    assert files.book.routes.routes[2].rules[0].notification.phases == (Phase.FAILED,)

    file.write_text("routes:\n" + good[2] + "  - {match: {phase: FAILED}}\n")
    files.load()
    assert sorted(names(files)) == ["new", "one", "three", "two"], "which route is meant is not known: all hold"

    file.write_text("routes:\n" + good[2])
    files.load()
    assert (names(files), files.problems) == (["three"], ())


def test_of_two_routes_with_one_name_the_first_holds(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("routes:\n" + a_route("one", stop="true"))
    (tmp_path / "b.yaml").write_text("routes:\n" + a_route("two") + a_route("one"))
    files = loaded(tmp_path)
    assert names(files) == ["one", "two"]
    assert files.book.routes.routes[0].stop
    assert problems(files) == [f"b.yaml:3: route 'one': {tmp_path / 'a.yaml'}:2 has this name already: choose another"]


def test_the_version_is_that_of_the_contents_in_effect(tmp_path: Path) -> None:
    plans, routes = tmp_path / "plans", tmp_path / "routes"
    for folder in (plans, routes):
        folder.mkdir()
    files = RuleFiles([plans], [routes], NAMES)
    assert not files.load()
    assert files.book.version == ""

    seen: set[str] = set()

    def differs(changed: bool = True) -> None:
        files.load()
        others = RuleFiles([plans], [routes], NAMES)
        others.load()
        assert (files.book.version not in seen) is changed
        if not files.problems:
            assert others.book.version == files.book.version, "the same files have the same version everywhere"
        seen.add(files.book.version)

    (plans / "lp.yaml").write_text("launch_plan: {project: p, domain: d, name: lp}\nnotifications: []\n")
    differs()
    (routes / "a.yaml").write_text("routes:\n" + a_route("one"))
    differs()
    (routes / "a.yaml").rename(routes / "z.yaml")
    differs()
    (routes / "z.yaml").write_text("routes: [")
    differs(changed=False)
    (routes / "z.yaml").write_text("routes:\n" + a_route("one", stop="maybe") + a_route("two"))
    differs()
    (routes / "z.yaml").write_text("routes:\n" + a_route("one") + a_route("two"))
    differs()
    (routes / "z.yaml").unlink()
    differs(changed=False)


@pytest.mark.parametrize(
    ("limit", "change", "words"),
    [
        ("MAX_ROUTES", "", "3 routes"),
        ("MAX_PARTS", "phase: FAILED, project: [" + "p," * 95 + "]", "100 patterns and recipients in routes"),
        ("MAX_PARTS", "phase: FAILED, not: {project: '*" + "p" * 950 + "'}", "100 patterns and recipients in routes"),
        ("MAX_STEPS", "phase: FAILED, error: {message: 'x{60}'}", "100 steps in the regular expressions of routes"),
    ],
)
def test_a_file_for_which_there_is_no_room_is_left_out_and_the_old_ones_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, change: str, words: str
) -> None:
    monkeypatch.setattr(f"dispatcher.rules.route_files.{limit}", int(words.split(maxsplit=1)[0]))
    old, new = (f"routes:\n{a_route(f'{name}-1')}{a_route(f'{name}-2')}" for name in ("old", "new"))
    (tmp_path / "b.yaml").write_text(old.replace("phase: FAILED", change or "phase: FAILED", 1))
    files = loaded(tmp_path)
    (tmp_path / "a.yaml").write_text(new.replace("phase: FAILED", change or "phase: FAILED", 1))
    for _ in range(2):
        files.load()
        assert names(files) == ["old-1", "old-2"], "a new file displaces no old one, wherever its path stands"
        assert problems(files) == [
            f"a.yaml:1: with this file, all files would have more than {words}, so it is left out"
        ]
    assert not files.load(), "a file that is left out is not read again and again"

    (tmp_path / "b.yaml").write_text("routes: []")
    files.load()
    files.load()
    assert (names(files), problems(files)) == (["new-1", "new-2"], []), "there is room now"


HOSTILE = {
    "mistakes": "routes:\n" + a_route("x").replace("FAILED", "FAILED, project: [" + "1," * 20_000 + "]"),
    "labels": "routes:\n"
    + a_route("x").replace("FAILED", f"FAILED, labels: {{{', '.join(f'k{at}: x' for at in range(5000))}}}"),
    "a label of 100 kB": "routes:\n" + a_route("x").replace("FAILED", f"FAILED, labels: {{team: {'x' * 100_000}}}"),
    "recipients": "routes:\n" + a_route("x").replace("ml-team", "1," * 20_000),
    "addresses": "routes:\n" + a_route("x").replace("ml-team", "{email: [" + "1," * 20_000 + "]}"),
    "an address of 100 kB": "routes:\n" + a_route("x").replace("ml-team", f"{{email: {'x' * 100_000}}}"),
    "globs": "routes:\n" + a_route("x").replace("FAILED", "FAILED, project: [" + f"'*{'a' * 900}'," * 20 + "]"),
    "an expression": "routes:\n" + a_route("x").replace("FAILED", "FAILED, error: {message: '" + "(" * 1000 + "'}"),
    "a cycle": "routes:\n" + a_route("x").replace("{phase", "&m {not: *m, phase"),
    "depth": "routes:\n" + a_route("x").replace("ml-team", "[" * 100 + "]" * 100),
    "a name of 100 kB": "routes:\n" + a_route("x").replace("ml-team", "x" * 100_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_sentence_and_the_old_route_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.yaml").write_text("routes:\n" + a_route("x"))
    files = loaded(tmp_path)
    (tmp_path / "a.yaml").write_text(HOSTILE[name])
    files.load()
    (problem,) = problems(files)
    assert re.match(r"a\.yaml:[12]: ", problem)
    assert len(problem) < 400
    assert "\n" not in problem
    assert names(files) == ["x"]


def test_very_many_misspelt_contacts_are_refused_soon(tmp_path: Path) -> None:
    contacts = Names({f"team-{number}-contact": 1 for number in range(200)})
    lines = [a_route(f"r{number}").replace("ml-team", f"taem-{number}-contact") for number in range(1000)]
    (tmp_path / "a.yaml").write_text("routes:\n" + "".join(lines))
    files = RuleFiles((), [tmp_path], contacts)
    began = time.process_time()
    files.load()
    assert time.process_time() - began < 5, "finding the nearest names for all of them would take 20 s"
    assert len(files.problems) == 1000
    assert "did you mean team-0-contact" in files.problems[0].message
    assert files.problems[-1].message.endswith("there is no contact 'taem-999-contact'")


async def test_10_000_routes_are_reloaded_while_the_event_loop_goes_on(tmp_path: Path) -> None:
    """The loop's thread is kept for less than 50 ms at a time. The limit is wider, because tests share their CPUs."""
    files = loaded(tmp_path)
    stop = asyncio.Event()
    watching = asyncio.create_task(files.watch(stop))
    await asyncio.sleep(0.3)
    pauses: list[float] = []
    for attempt in range(4):
        for number in range(10):
            lines = [a_route(f"r{attempt}-{number}-{at}") for at in range(1000)]
            (tmp_path / f"{number}.yaml").write_text("routes:\n" + "".join(lines))
        before, longest = time.monotonic(), 0.0
        while f"r{attempt}-9-999" not in {route.name for route in files.book.routes.routes[-1:]}:
            await asyncio.sleep(0.002)
            now = time.monotonic()
            before, longest = now, max(longest, now - before)
        assert len(files.book.routes) == 10_000
        pauses.append(longest)
        if longest < 0.1:
            break
    stop.set()
    await watching
    assert min(pauses) < 0.1, pauses


def test_a_route_may_name_the_owner_if_the_settings_say_who_that_is(tmp_path: Path) -> None:
    text = "routes: [{name: a, match: {phase: FAILED}, notify: [owner, ml-team, {email: [owner]}, owner]}]"
    (tmp_path / "routes.yaml").write_text(text)
    without = loaded(tmp_path)
    assert problems(without) == [
        "routes.yaml:1: route 'a': notify: owner: the settings have no section owners, which says who the owner is"
    ]
    files = RuleFiles((), [tmp_path], replace(NAMES, owners=Owners(label="team")))
    files.load()
    route = only(files)
    assert [(rule.notification.channel, rule.notification.recipients, rule.names_owner) for rule in route.rules] == [
        ("", ("owner",), True),
        ("", ("ml-team",), False),
        ("email", ("owner",), False),
    ]
    assert files.book.routes.owners == Owners(label="team")
