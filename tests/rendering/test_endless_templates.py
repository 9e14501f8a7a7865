"""A template that loops forever or grows without limit is stopped with a reason, and the message is still sent."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from channels.registry import CHANNEL_TYPES
from dispatcher.model.phase import Phase
from dispatcher.rendering.operator_templates import SKIP_AFTER_STOP
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.rendering.template_process import MAX_REPLY, MEMORY_LIMIT, TIME_LIMIT
from tests.support.builders import an_event

FAILED = sample_event(Phase.FAILED)
WAIT = TIME_LIMIT + 2.0
"""Seconds within which a stopped message must be rendered with the built-in template, on a busy machine."""
TIME, MEMORY = "s: it loops too long, or makes too much", "needs too much memory"
DEEP_LOOP = "{% for a in '" + "x" * 300 + "' %}"
GROWING = (
    "{% set n = namespace(a='x') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}{{ n.a | length }}"
)

ENDLESS = {
    "loops over literals": (DEEP_LOOP * 5 + "{% endfor %}" * 5, TIME),
    "a constant that is computed when it is compiled": ("{{ ('a\\ra\\r' * 5000) | indent(200000) }}", ""),
    "one long call in C": ("{{ 10 ** (10 ** 10) }}", TIME),
    "text times a number": ("{{ what * 10 ** 12 }}", MEMORY),
    "text that doubles": (GROWING, MEMORY),
    "a list that doubles": (GROWING.replace("'x'", "[1]").replace("~", "+"), ""),
}
"""Mapping from a kind of template to its source and the reason. Empty: either reason, depending on the machine."""


def renderer_with(folder: Path, source: str) -> Renderer:
    """A Renderer with an own template of the mail's subject."""
    (folder / "email").mkdir(exist_ok=True)
    (folder / "email" / "subject.txt.j2").write_text(source)
    return Renderer(CHANNEL_TYPES, [folder])


def children() -> set[str]:
    """The ids of this process's child processes."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_template_is_stopped_and_the_built_in_one_is_used(tmp_path: Path, kind: str) -> None:
    source, reason = ENDLESS[kind]
    renderer = renderer_with(tmp_path, source)
    renderer.render("slack", FAILED)  # starts the process

    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with capture_logs() as logs:
        content = renderer.render("email", FAILED)
    spent = time.monotonic() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory

    assert content == Renderer(CHANNEL_TYPES).render("email", FAILED)
    assert spent < WAIT
    assert grown < 20_000, "kilobytes"
    (entry,) = logs
    assert reason in entry["reason"]
    assert "stopped" in entry["reason"]
    assert "subject.txt.j2" in entry["reason"]


def test_a_message_that_is_too_large_is_not_taken_from_the_process(tmp_path: Path) -> None:
    (tmp_path / "webhook").mkdir()
    (tmp_path / "webhook" / "body.yaml").write_text("text: [" + "'{{ \"x\" * 20000 }}', " * 300 + "]")
    with capture_logs() as logs:
        assert Renderer(CHANNEL_TYPES, [tmp_path]).render("webhook", FAILED) == Renderer(CHANNEL_TYPES).render(
            "webhook", FAILED
        )
    assert f"larger than {MAX_REPLY} bytes" in logs[0]["reason"]


def test_a_stopped_template_is_skipped_for_some_messages_and_then_tried_again(tmp_path: Path) -> None:
    failures: list[str] = []
    renderer_with(tmp_path, "{{ what * 10 ** 12 }}")
    renderer = Renderer(CHANNEL_TYPES, [tmp_path], on_failure=failures.append)
    with capture_logs() as logs:
        for _ in range(2 * SKIP_AFTER_STOP):
            renderer.render("email", FAILED)
            renderer.render("slack", FAILED)
    assert [entry["next_messages"] for entry in logs] == [SKIP_AFTER_STOP, SKIP_AFTER_STOP]
    assert failures == ["email"] * 2 * SKIP_AFTER_STOP


def test_the_next_message_gets_a_new_process_if_the_old_one_was_killed(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path, "mine")
    renderer.render("slack", FAILED)
    (pid,) = [pid for pid in children() if b"template_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert f"Max address space         {MEMORY_LIMIT} " in Path(f"/proc/{pid}/limits").read_text()
    os.kill(int(pid), signal.SIGKILL)
    with capture_logs() as logs:
        first, second = (renderer.render("email", FAILED)["subject"] for _ in range(2))
    assert (first, [entry["log_level"] for entry in logs]) == (
        Renderer(CHANNEL_TYPES).render("email", FAILED)["subject"],
        ["error"],
    )
    assert "was ended by SIGKILL" in logs[0]["reason"]
    assert second == first  # the built-in template is used for the next `SKIP_AFTER_STOP` messages
    assert renderer_with(tmp_path, "mine").render("email", FAILED)["subject"] == "mine"


NO_OVERRIDES = """
from pathlib import Path
from channels.registry import CHANNEL_TYPES
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.model.phase import Phase

for channel in CHANNEL_TYPES:
    Renderer(CHANNEL_TYPES).render(channel, sample_event(Phase.FAILED))
assert not Renderer(CHANNEL_TYPES).check()
print(sum(len(file.read_text().split()) for file in Path("/proc/self/task").glob("*/children")))
"""
ORPHAN = """
import os, signal, sys
from pathlib import Path
from threading import Timer
from channels.registry import CHANNEL_TYPES
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.model.phase import Phase

renderer, event = Renderer(CHANNEL_TYPES, [Path(sys.argv[1])]), sample_event(Phase.FAILED)
renderer.render("slack", event)
print(Path(f"/proc/self/task/{os.getpid()}/children").read_text(), flush=True)
Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
renderer.render("email", event)
"""


def test_without_own_templates_no_process_is_started() -> None:
    command = [sys.executable, "-c", NO_OVERRIDES]
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout == "0\n"


def test_the_process_ends_soon_after_its_parent_was_killed_and_has_no_secrets(tmp_path: Path) -> None:
    renderer_with(tmp_path, ENDLESS["loops over literals"][0])
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    environment = {"DISPATCHER__CHANNELS__SLACK__TOKEN": "xoxb-hidden", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = parent.stdout.readline().strip()
        assert "hidden" not in Path(f"/proc/{pid}/environ").read_text()
        assert parent.wait(20) == -signal.SIGKILL
    began = time.monotonic()
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() - began < 30  # the process has a second of processor time
        time.sleep(0.05)


def test_a_template_that_fails_for_one_event_is_used_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "subject.txt.j2").write_text("{{ labels['team'] }}")
    renderer = Renderer(CHANNEL_TYPES, [tmp_path])
    assert "failed" in renderer.render("email", an_event())["subject"]
    assert renderer.render("email", FAILED)["subject"] == "data-science"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ what | upper }} {{ labels.items() | map('join', '=') | join(', ') }}", "TRAIN.DAILY team=data-science"),
        ("{{ '%s/%s' % (project, domain) }}{{ '{:>3}'.format('a') }}", "flytesnacks/production a"),
        ("{% for a in [1, [2]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}{{ [1, 2] | sum }}", "123"),
        ("{% macro f() %}{{ caller(1) }}{% endmacro %}{% call(x) f() %}{{ x | string | center(3) }}{% endcall %}", "1"),
    ],
)
def test_own_templates_can_use_all_of_jinja(tmp_path: Path, source: str, shown: str) -> None:
    renderer = renderer_with(tmp_path, source)
    assert renderer.check() == []
    assert renderer.draft("email", FAILED)["subject"].strip() == shown


EIGHT_ALIASES = "e: &e [*d, *d, *d, *d, *d, *d, *d, *d]"
BILLION_LAUGHS = "\n".join(
    EIGHT_ALIASES.replace("d", old).replace("e", new) for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize("text", [f"text: &a x\n{BILLION_LAUGHS}", "text: &a [*a]"])
def test_a_document_that_grows_by_aliases_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "slack").mkdir()
    (tmp_path / "slack" / "message.yaml").write_text(text)
    renderer = Renderer(CHANNEL_TYPES, [tmp_path])
    assert "alias" in renderer.check()[0].message
    assert renderer.render("slack", FAILED) == Renderer(CHANNEL_TYPES).render("slack", FAILED)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A template folder beside a file that no template may read."""
    (tmp_path / "secret").write_text("text: the-secret")
    (tmp_path / "own" / "email").mkdir(parents=True)
    (tmp_path / "own" / "slack").mkdir()
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("email/subject.txt.j2", "../../secret"),
        ("slack/message.yaml", "../../secret"),
        ("email/text.txt.j2", "/etc/hostname"),
        ("email/style.css", "../../secret"),
    ],
)
def test_a_link_out_of_the_template_folder_is_refused(outside: Path, name: str, target: str) -> None:
    (outside / name).symlink_to(target)
    renderer, channel = Renderer(CHANNEL_TYPES, [outside]), name.partition("/")[0]
    assert f"{outside / name} leads out of the template folder {outside}" in renderer.check()[0].message
    with capture_logs() as logs:
        assert renderer.render(channel, FAILED) == Renderer(CHANNEL_TYPES).render(channel, FAILED)
    assert "leads out of the template folder" in logs[0]["reason"]


def test_a_name_out_of_the_template_folder_is_refused(outside: Path) -> None:
    for name in ("../secret", str(outside.parent / "secret"), "email/../../secret"):
        (outside / "email" / "subject.txt.j2").write_text(f"{{% include '{name}' ignore missing %}}")
        assert any(
            "leads out of the template folder" in problem.message
            for problem in Renderer(CHANNEL_TYPES, [outside]).check()
        )


def test_links_within_a_template_folder_are_followed(outside: Path) -> None:
    """As kubelet mounts a ConfigMap: each file is a link through `..data`, and so may be the folder."""
    (outside / "..2026").mkdir()
    (outside / "..2026" / "subject").write_text("mine")
    (outside / "..data").symlink_to("..2026")
    (outside / "email" / "subject.txt.j2").symlink_to("../..data/subject")
    (outside.parent / "link").symlink_to("own")
    for folder in (outside, outside.parent / "link"):
        assert Renderer(CHANNEL_TYPES, [folder]).draft("email", FAILED)["subject"] == "mine"
