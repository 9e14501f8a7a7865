"""A template that loops forever or grows without limit is stopped with a reason, and the message is still sent."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import FileSystemLoader
from structlog.testing import capture_logs

from dispatcher.model.phase import Phase
from dispatcher.rendering import Renderer, lint
from dispatcher.rendering.renderer import SKIP_AFTER_STOP, built_in_folder, sample_event
from dispatcher.rendering.sandbox import BUDGET, DEPTH, FILTERS, INCLUDES, METHODS, Meter, MeteredSandbox
from tests.support.builders import an_event

FAILED = sample_event(Phase.FAILED)
MAX_CPU_TIME = 3.0
"""Seconds of processor time for one message. The limits allow less than one second; the rest is tolerance."""

MACRO = "{{% macro f(a, n) %}}{}{{% endmacro %}}"
MANY = "{% for a in range(90000) %}{% for b in range(90000) %}"
STEPS = f"stopped after {BUDGET} steps"

ENDLESS = {
    "loops": (MANY + "x{% endfor %}{% endfor %}", STEPS),
    "empty loops": (MANY + "{% endfor %}{% endfor %}", STEPS),
    "loops whose test fails": ("{% for a in range(90000) %}{% for b in range(90000) if b < 0 %}{% endfor %}{% endfor %}", STEPS),
    "wide loops": (MANY + "x" * 50_000 + "{% endfor %}{% endfor %}", STEPS),
    "wide loops that are kept": ("{% set x %}" + MANY + "x" * 50_000 + "{% endfor %}{% endfor %}{% endset %}", STEPS),
    "lazy filters": (MANY + "{{ range(90000) | map('string') | map('upper') | list | length }}{% endfor %}{% endfor %}", STEPS),
    "a recursive loop": ("{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}", "recursive loops are not supported"),
    "a macro that calls itself": (MACRO.format("{{ f(a, n) }}") + "{{ f(1, 1) }}", f"stopped at {DEPTH} macros"),
    "a macro that calls itself twice": (
        MACRO.format("{% if n %}{{ f(a, n - 1) }}{{ f(a, n - 1) }}{% endif %}") + "{{ f(1, 25) }}", STEPS),
    "including itself": ("{% include 'email/subject.txt.j2' %}", f"stopped after {INCLUDES} includes"),
    "importing itself": ("{% import 'email/subject.txt.j2' as me with context %}{{ me }}", f"stopped after {INCLUDES} includes"),
    "extending itself": ("{% extends 'email/subject.txt.j2' %}", f"stopped after {INCLUDES} includes"),
    "including for ever": ("{% for a in range(90000) %}{% include 'email/text.txt.j2' %}{% endfor %}", f"stopped after {INCLUDES} includes"),
    "text times a number": ("{{ 'x' * 10 ** 12 }}", STEPS),
    "a list times a number": ("{{ ([what] * 10 ** 12) | length }}", STEPS),
    "a large power": ("{{ 10 ** (10 ** 10) }}", "stopped at a number"),
    "powers of powers": ("{% set n = namespace(a=3) %}{% for i in range(99) %}{% set n.a = n.a * n.a %}{% endfor %}{{ n.a }}", "stopped at a number"),
    "doubling text": ("{% set n = namespace(a='x') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}{{ n.a }}", STEPS),
    "adding text": ("{% set n = namespace(a='x') %}{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}{{ n.a }}", STEPS),
    "doubling lists": ("{% set n = namespace(a=[1]) %}{% for i in range(99) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a == n.a }}", STEPS),
    "doubling tuples as keys": ("{% set n = namespace(a=(1, 2)) %}{% for i in range(99) %}{% set n.a = (n.a, n.a) %}{% endfor %}{{ labels[n.a] }}", STEPS),
    "doubling mappings": ("{% set n = namespace(a={}) %}{% for i in range(99) %}{% set n.a = dict(a=n.a, b=n.a) %}{% endfor %}{{ n.a == n.a }}", STEPS),
    "doubling through a macro": (
        MACRO.format("{% if n %}{{ f([a, a], n - 1) }}{% else %}{{ a | length }}{% endif %}") + "{{ f([1], 28) }}", STEPS),
    "doubling namespaces": ("{% set n = namespace(a=1) %}{% for i in range(9) %}{% set n = namespace(a=n) %}{% endfor %}{{ n }}", "namespace can't be"),
    "comparisons": ("{% set big = range(90000) | list %}{% for i in range(90000) %}{{ 'x' if -1 in big }}{% endfor %}", STEPS),
    "tests": ("{% set big = range(90000) | list %}{% for i in range(90000) %}{{ 'x' if -1 is in big }}{% endfor %}", STEPS),
    "slices": ("{% set big = range(9000) | list %}{% for i in range(90000) %}{% set x = big[1:] %}{% endfor %}", STEPS),
    "methods": ("{% set big = 'xy' * 90000 %}{% for i in range(90000) %}{{ big.count('z') }}{% endfor %}", STEPS),
    "replace": ("{{ ('x' * 9000) | replace('x', 'y' * 9000) | length }}", STEPS),
    "replace nothing": ("{{ ('x' * 9000) | replace('', 'y' * 9000) | length }}", STEPS),
    "join": ("{{ (range(9000) | list) | join('y' * 9000) | length }}", STEPS),
    "indent": ("{{ ('\\n' * 9000) | indent(10 ** 6) | length }}", STEPS),
    "wordwrap": ("{% for i in range(900) %}{{ ('x' * 9000) | wordwrap(1, true, 'y' * 9000) | length }}{% endfor %}", STEPS),
    "cut": ("{% for i in range(9000) %}{{ ('x' * 90000) | cut(80000) | length }}{% endfor %}", STEPS),
    "formats": ("{{ '%s' * 9000 % ('x' * 9000) }}", STEPS),
    "a format of one value many times": ("{{ ('%(a)s' * 9000) | format(a='x' * 9000) | length }}", STEPS),
    "a wide format by name": ("{{ '%(a)999999999d' | format(a=1) }}", "two digits"),
    "a wide format by a long name": ("{{ '%(a(b))999999999d' % {'a(b)': 1} }}", "two digits"),
    "a long fraction": ("{{ '%.999999999f' % 1 }}", "two digits"),
    "wrapping one long word": ("{{ ('x' * 400000) | wordwrap(1) | length }}", STEPS),
    "a wide format": ("{{ '%999999999d' % 1 }}", "two digits"),
    "a format as wide as it is told": ("{{ '%*d' | format(999999999, 1) }}", "two digits"),
    "a long rounding": ("{{ 1.5 | round(10 ** 9, 'floor') }}", "round takes"),
    "ljust": ("{{ 'x'.ljust(10 ** 10) }}", "unsafe"),
    "ljust by its name": ("{{ 'x'['ljust'](10 ** 10) }}", "unsafe"),
    "format by a method": ("{{ '{:>9999999999}'.format(1) }}", "unsafe"),
    "bytes of a number": ("{{ (1).to_bytes(10 ** 10, 'big') }}", "unsafe"),
    "center": ("{{ 'x' | center(10 ** 10) }}", "No filter named 'center'"),
    "lipsum": ("{{ lipsum(10 ** 9) }}", "'lipsum' is undefined"),
    "a list shown": ("{{ [1, 2] }}", "a list can't be shown"),
    "too long a source": ("x" * 200_001, "longer than"),
    "deep brackets": ("{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}", "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_template_is_stopped_and_the_built_in_one_is_used(tmp_path: Path, kind: str) -> None:
    source, reason = ENDLESS[kind]
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "subject.txt.j2").write_text(source)
    renderer = Renderer([tmp_path])

    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with capture_logs() as logs:
        content = renderer.render("email", FAILED)
    spent = time.process_time() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory

    assert content == Renderer().render("email", FAILED)
    assert spent < MAX_CPU_TIME
    assert grown < 200_000, "kilobytes"
    (entry,) = logs
    assert reason in entry["reason"]
    assert "subject.txt.j2" in entry["reason"]


VALUES = [
    "n.a", "n.b", "what", "7", "99999", "1.5", "'xy '", "error.message", "labels", "range(90000)", "[1, 2]", "(1, 2)",
    "(range(9000) | list)", "('x' * 9000)", "('< & ' * 900)",
]  # fmt: skip


def an_expression(random: Random, depth: int) -> str:
    """A random expression from all of the language's operators, filters and methods."""
    if depth == 0:
        return random.choice(VALUES)
    one, other, third = (an_expression(random, depth - 1) for _ in range(3))
    names = sorted(FILTERS)
    return random.choice(
        [
            f"({one} {random.choice(['+', '*', '~', '%', '**', '//', '-', '==', '<', 'in'])} {other})",
            f"({one} | {random.choice(names)})",
            f"({one} | {random.choice(names)}({other}))",
            f"({one} | {random.choice(names)}({other}, {third}))",
            f"({one} | map('{random.choice(names)}', {other}))",
            f"{one}.{random.choice(sorted(METHODS))}({other})",
            f"[{one}, {other}]",
            f"{{'k': {one}, 'l': {other}}}",
            f"{one}[{random.choice(['1:', ':-1', '::2', '0'])}]",
            f"({one} if {other} else {third})",
            f"({one} is in {other})",
            f"f({one}, {other})",
        ]
    )


def a_statement(random: Random, depth: int) -> str:
    if depth == 0:
        return f"{{% set n.{random.choice('ab')} = {an_expression(random, 3)} %}}{{{{ n.a }}}}"
    inner = "".join(a_statement(random, depth - 1) for _ in range(random.randint(1, 3)))
    over = random.choice(["range(99)", an_expression(random, 1)])
    return random.choice([f"{{% for x in {over} %}}{inner}{{% endfor %}}", f"{{% set n.a %}}{inner}{{% endset %}}"])


@settings(max_examples=80, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_template_ends_within_its_limits_of_time_and_memory(random: Random) -> None:
    opening = "{% macro f(a, b) %}{{ a }}{% if b %}{{ f(b, a) }}{% endif %}{% endmacro %}{% set n = namespace(a='x', b=[3]) %}"
    with TemporaryDirectory() as folder:
        (Path(folder) / "email").mkdir()
        (Path(folder) / "email" / "subject.txt.j2").write_text(opening + a_statement(random, 3))
        renderer = Renderer([Path(folder)])
        began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with capture_logs():
            assert lint("email", renderer.render("email", FAILED)) == []
        assert time.process_time() - began < MAX_CPU_TIME
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000


def test_a_stopped_template_is_skipped_for_some_messages_and_then_tried_again(tmp_path: Path) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "subject.txt.j2").write_text(ENDLESS["loops"][0])
    renderer = Renderer([tmp_path])
    began = time.process_time()
    with capture_logs() as logs:
        for _ in range(2 * SKIP_AFTER_STOP):
            renderer.render("email", FAILED)
            renderer.render("slack", FAILED)
    assert [entry["next_messages"] for entry in logs] == [SKIP_AFTER_STOP, SKIP_AFTER_STOP]
    assert time.process_time() - began < 2 * MAX_CPU_TIME


def test_a_template_that_fails_for_one_event_is_used_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "subject.txt.j2").write_text("{{ labels['team'] }}")
    renderer = Renderer([tmp_path])
    assert "failed" in renderer.render("email", an_event())["subject"]
    assert renderer.render("email", FAILED)["subject"] == "data-science"


def test_each_message_has_its_own_budget(tmp_path: Path) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "subject.txt.j2").write_text("{% for i in range(60000) %}{% endfor %}mine")
    renderer = Renderer([tmp_path])
    assert [renderer.render("email", FAILED)["subject"] for _ in range(9)] == ["mine"] * 9


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ what | upper }} {{ labels.items() | map('join', '=') | join(', ') }}", "TRAIN.DAILY team=data-science"),
        ("{{ '%s/%s' % (project, domain) }}{{ '%3s' | format('a') }}", "flytesnacks/production a"),
        ("{% set colors = {'failed': 'red'} %}{{ colors[phase] if phase in colors else 'none' }}", "red"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(what) ~ f(2 * 3) }}", "<train.daily><6>"),
        ("{{ 10000000 * 1.5 }} {{ 3 * '-' }} {{ '%(a)s' | format(a=1) }} {{ '%.1f%%' % 99.5 }}", "15000000.0 --- 1 99.5%"),
        ("{% for a, b in [(1, 2), (3, 4)] %}{{ loop.index }}{{ a + b }}{{ ',' if not loop.last }}{% endfor %}", "13,27"),
        ("{{ what.split('.') | last }} {{ what.upper()[:5] }} {{ error.summary | wordwrap(10) | replace('\\n', '|') | cut(8) }}", "daily TRAIN ValueEr…"),
        ("{% macro f() %}{{ caller(1) }}{{ caller(2) }}{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}", "12"),
    ],
)  # fmt: skip
def test_common_constructs_work_within_the_limits(tmp_path: Path, source: str, shown: str) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "subject.txt.j2").write_text(source)
    renderer = Renderer([tmp_path])
    assert renderer.check() == []
    assert renderer.draft("email", FAILED)["subject"] == shown


def test_every_allowed_filter_exists() -> None:
    assert set(MeteredSandbox(FileSystemLoader(built_in_folder()), Meter()).filters) >= FILTERS


EIGHT_ALIASES = "e: &e [*d, *d, *d, *d, *d, *d, *d, *d]"
BILLION_LAUGHS = "\n".join(
    EIGHT_ALIASES.replace("d", old).replace("e", new) for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize("text", [f"text: &a x\n{BILLION_LAUGHS}", "text: &a [*a]"])
def test_a_document_that_grows_by_aliases_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "slack").mkdir()
    (tmp_path / "slack" / "message.yaml").write_text(text)
    renderer = Renderer([tmp_path])
    assert "alias" in renderer.check()[0].message
    assert renderer.render("slack", FAILED) == Renderer().render("slack", FAILED)


def test_all_strings_of_a_document_share_one_budget(tmp_path: Path) -> None:
    (tmp_path / "slack").mkdir()
    leaf = '  - {type: section, text: {type: mrkdwn, text: "{% for i in range(90000) %}{% endfor %}x"}}\n'
    (tmp_path / "slack" / "message.yaml").write_text("text: x\nblocks:\n" + leaf * 9)
    (problem, *_) = Renderer([tmp_path]).check()
    assert STEPS in problem.message
