"""Events and matchers for property tests: few texts and many patterns, so that they often agree."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.phase import TERMINAL, Phase
from tests.support.builders import NOW

UNKNOWN = "unknown"
ABSENT = None
TEXTS = ("a", "b", "ab", "A", "a.b", "[a]")
PATTERNS = st.sampled_from([*TEXTS, "*", "a*", "?", "[ab]", "[!a]", "[", "[[]a]", "**"])


def entity(name: str, version: str = "") -> EntityId:
    return EntityId(project="p", domain="d", name=name, version=version)


@st.composite
def events(draw: st.DrawFn) -> tuple[Event, dict[str, Any]]:
    """An event, and all that is known of it: a mapping from a key to its value, to ABSENT or to UNKNOWN."""
    looked_up = draw(st.booleans())
    missing = ABSENT if looked_up else UNKNOWN
    maybe = st.none() | st.sampled_from(TEXTS)
    phase = draw(st.sampled_from(sorted(TERMINAL)))
    project, domain = draw(st.sampled_from(TEXTS)), draw(st.sampled_from(TEXTS))
    plan, workflow, version = draw(maybe), draw(maybe), draw(maybe)
    principal, mode = draw(maybe), draw(st.sampled_from([None, "manual", "child"]))
    parent = draw(st.none() | st.just(ExecutionId(project="p", domain="d", name="n")))
    labels = draw(st.dictionaries(st.sampled_from("xy"), st.sampled_from([*TEXTS, ""])))
    seconds = draw(st.none() | st.integers(-5, 20))
    code, message, kind = draw(maybe), draw(maybe), draw(st.sampled_from([None, "USER", "SYSTEM"]))
    event = Event(
        execution=ExecutionId(project=project, domain=domain, name="n"),
        phase=phase,
        occurred_at=NOW,
        launch_plan=entity(plan, version or "") if plan else None,
        workflow=entity(workflow) if workflow else None,
        principal=principal or "",
        mode=mode or "",
        parent=parent,
        labels=labels,
        started_at=None if seconds is None else NOW - timedelta(seconds=seconds),
        error=ExecutionError(code=code or "", message=message or "", kind=kind) if kind else None,
        looked_up=looked_up,
    )
    failed = phase is not Phase.SUCCEEDED
    known = {
        "phase": phase,
        "project": project,
        "domain": domain,
        "launch_plan": plan or missing,
        "workflow": workflow or missing,
        "version": (version if plan else None) or missing,
        "principal": principal or missing,
        "mode": mode or missing,
        "parent": parent or missing,
        "duration": missing if seconds is None else max(seconds, 0),
        "error.kind": (kind or missing) if failed else ABSENT,
        "error.code": ((kind and code) or missing) if failed else ABSENT,
        "error.message": ((kind and message) or missing) if failed else ABSENT,
        "labels.x": labels.get("x") if labels else missing,
        "labels.y": labels.get("y") if labels else missing,
    }
    return event, known


def a_list(of: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return of | st.lists(of, min_size=1, max_size=6)


KEYS: dict[str, st.SearchStrategy[Any]] = {
    "phase": a_list(st.sampled_from(sorted(TERMINAL))),
    **{key: a_list(PATTERNS) for key in ("project", "domain", "launch_plan", "workflow", "version", "principal")},
    "mode": a_list(st.sampled_from(["manual", "ch*", "*"])),
    "parent": st.sampled_from(["none", "any"]),
    "labels": st.dictionaries(st.sampled_from("xy"), a_list(PATTERNS | st.just("")), min_size=1),
    "duration": st.fixed_dictionaries({"longer_than": st.integers(0, 9), "shorter_than": st.integers(10, 20)}),
    "error": st.fixed_dictionaries(
        {"kind": a_list(st.sampled_from(["USER", "S*"]))},
        optional={"code": a_list(PATTERNS), "message": st.sampled_from(["a", "^b", "B", r"\."])},
    ),
}


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=4, unique=True))
    return {key: draw(KEYS[key]) for key in keys}


MATCHERS = st.tuples(conditions(), st.none() | conditions()).map(
    lambda pair: pair[0] if pair[1] is None else {**pair[0], "not": pair[1]}
)
