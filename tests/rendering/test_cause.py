"""The cause of a failure: errors that differ only in what changes from run to run have one, different failures others."""

from __future__ import annotations

import random
import string
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.flyte.decode import decode
from dispatcher.model.event import Event
from dispatcher.model.hold import HoldReason
from dispatcher.model.phase import Phase
from dispatcher.rendering.cause import LONGEST_NAME, NO_CAUSE, cause_of, normalized
from dispatcher.rendering.samples import sample_event, sample_summary
from dispatcher.rendering.text import one_line
from tests.support.builders import an_event
from tests.support.samples import sample

EXECUTION = "akx7b9q2vjt5fm4c8h2d"
TRACEBACK = """[3/3] currentAttempt done. Last Error: USER::Traceback (most recent call last):

      File "/opt/venv/lib/python3.12/site-packages/flytekit/exceptions/scopes.py", line 178, in system_entry_point
        return wrapped(*args, **kwargs)
      File "{folder}/flows/train.py", line {line}, in {function}
        raise {error}

Message:

    {error}

User error.
"""
CONTAINER = (
    "[{attempt}/{attempt}] currentAttempt done. Last Error: USER::\n"
    "\r\n[{execution}-n0-0] terminated with exit code ({code}). Reason [Error]. Message: \n{output}."
)


def a_traceback(
    error: str = "ValueError: bad rate", *, folder: str = "/root", line: int = 41, function: str = "fit"
) -> str:
    return TRACEBACK.format(error=error, folder=folder, line=line, function=function)


def a_container(output: str = "bash: train: not found", *, execution: str = EXECUTION, code: int = 1) -> str:
    return CONTAINER.format(output=output, execution=execution, code=code, attempt=1 + len(output) % 3)


def failed(message: str, code: str = "", name: str = EXECUTION) -> Event:
    return an_event(name=name, error={"message": message, "code": code})


SAME = {
    "numbers": ["loss is 12.5 after 3 epochs", "loss is -0.1e-7 after 1,000 epochs", "loss is 5% after 3rd epochs"],
    "units": ["used 900 MiB in 1 second", "used 1.5 GiB in 20 seconds", "used 3145728Ki in 1m3s"],
    "lists": ["shapes (3, 4) and [1]", "shapes (3, 4, 5) and [1, 2, 3]"],
    "paths": [
        "no such file: '/data/a.csv'",
        "no such file: 's3://bucket/xy/k2/b.parquet'",
        r"no such file: 'C:\data\b.csv'",
    ],
    "relative paths": ["can't open ./out/a.bin", "can't open ../b/c.bin", "can't open out/d.bin", "can't open ~/e"],
    "hosts": ["can't reach db-1.example.com:5432", "can't reach 10.2.3.4:80", "can't reach ip-10-0-3-17.ec2.internal"],
    "addresses": [
        "refused jane.doe@example.com",
        "refused https://x.example.com/y?z=1&a=b",
        "refused fe80::1ff:fe23:4567:890a",
    ],
    "times": [
        "too late: 2026-11-29T13:59:19.951661Z",
        "too late: Mon, 30 Nov 2026 11:16:47 GMT",
        "too late: Feb 3 09:00:00",
        "too late: 11:16 PM",
        "too late: 2026-11-29 13:59:19,951",
    ],
    "ids": [
        "unknown job 123e4567-e89b-12d3-a456-426614174000",
        "unknown job deadbeef-cafe-4bad-abcd-decafbadfeed",
        "unknown job 4bf92f3577b34da6a3ce929d0e0e4736",
        "unknown job a94a8fe",
        "unknown job x7Kq2Zp9",
        "unknown job 0x7f3a2b",
    ],
    "executions": [
        f"no output of {EXECUTION}-n0-0",
        "no output of f7f8f879b002690a3000-fpqljyyq-0",
        "no output of n0-0-dn12",
    ],
    "executions without digits": ["of adghjklmnpqrstvwxzbc", "of f7f8f879b002690a3000"],
    "nodes": ["failed at Node[n1-n0]. boom", "failed at Node[train-step]. boom"],
    "pods": ["evicted api-7d9f8b6c5-x2x9z", "evicted api-bcdfghjkl-vwxzb"],
    "attempts": [
        "[1/1] currentAttempt done. Last Error: USER::boom",
        "[3/3] currentAttempt done. Last Error: SYSTEM::boom",
    ],
    "arrays": ["[0]: boom\n[1]: boom", "[17]: boom\n[23]: boom"],
    "frames": [a_traceback(line=1), a_traceback(line=20_000), a_traceback(folder="/app"), a_traceback(folder=".")],
    "temporary folders": [a_traceback(folder="/tmp/tmpab12x_9z"), a_traceback(folder="/var/run/3f2a9c81")],
    "output": [
        a_container("2026-11-30 10:00:01 start\n2026-11-30 10:00:02 ERROR no data"),
        a_container("ep 3\nep 4\n2026-12-01 03:04:05 ERROR no data", execution=f"f{'1a2' * 6}b"),
    ],
    "last lines of output": [
        a_container("x\nmake: *** [Makefile:12: all] Error 2"),
        a_container("make: *** [Makefile:9: all] Error 2"),
    ],
    "colours": ["\x1b[31mred\x1b[0m alert", "red alert"],
}
"""Errors of one cause each."""
DIFFERENT = [
    *(texts[0] for kind, texts in SAME.items() if kind not in {"frames", "attempts"}),
    "KeyError: 'epoch'",
    "KeyError: 'rate'",
    "TypeError: expected float32, got int64",
    "TypeError: expected float64, got int32",
    "OSError: [Errno 13] it failed",
    "OSError: [Errno 28] it failed",
    "HTTPError: 404 for url",
    "HTTPError: 503 for url",
    "exit status 2",
    "exit status 137",
    a_container(),
    a_container("bash: test: not found"),
    a_container(code=137),
    a_traceback(function="load"),
    a_traceback("ValueError: bad rates"),
    a_traceback("TypeError: bad rate"),
    a_traceback("ValueError: Failed to convert 'a':\n  no int"),
    a_traceback("ValueError: Failed to convert 'a':\n  no text"),
    a_traceback().replace("flows/", "models/"),
    "and/or",
    "N/A",
    "OOMKilled",
    "Outputs not generated by task execution",
]


@pytest.mark.parametrize("kind", SAME)
def test_the_same_failure_has_one_cause_at_other_times_hosts_ids_and_paths(kind: str) -> None:
    causes = {cause_of(failed(message)) for message in SAME[kind]}
    assert len({cause.fingerprint for cause in causes}) == 1, causes
    assert len({cause.name for cause in causes}) == 1, "a cause has one name"


def test_different_failures_have_different_causes() -> None:
    causes = {message: cause_of(failed(message)) for message in DIFFERENT}
    for one, other in combinations(DIFFERENT, 2):
        assert causes[one].fingerprint != causes[other].fingerprint, (one, other)


def test_the_names_of_causes_say_what_went_wrong_and_where() -> None:
    names = {
        message: cause_of(failed(message)).name for message in (a_traceback(), a_container(), "HTTP 503 from 10.0.0.1")
    }
    assert list(names.values()) == [
        "ValueError: bad rate (flows/train.py, fit)",
        "[...] terminated with exit code (1). Reason [Error]. Message: bash: train: not found.",
        "HTTP 503 from ...",
    ]
    converted = cause_of(failed(a_traceback("ValueError: Failed to convert 'a':\n  no int")))
    assert converted.name == "ValueError: Failed to convert 'a': no int (flows/train.py, fit)"
    assert cause_of(failed("", "RetriesExhausted|SYSTEM:NodeLost")).name == "SYSTEM:NodeLost"
    assert cause_of(failed("")) == cause_of(an_event(Phase.SUCCEEDED)) == NO_CAUSE


FINGERPRINTS = {
    "v1-workflow-failed": "v1:9ce781a1cb9f673c",
    "v2-workflow-failed": "v1:9ce781a1cb9f673c",
    "v1-workflow-failed-system-error": "v1:99401c19868d2ec4",
    "v1-workflow-timed_out": "v1:d0b631ec4e1b4116",
    Phase.FAILED: "v1:bff97aa8e0c35360",
    Phase.ABORTED: "v1:fed6c3094a26d096",
    Phase.TIMED_OUT: "v1:bfe2b1ad430dad3a",
}
"""Recorded messages of Flyte, and their fingerprints. If this must change, `VERSION` must too."""


def test_recorded_fingerprints_never_change() -> None:
    found = {}
    for name in (
        "v1-workflow-failed",
        "v2-workflow-failed",
        "v1-workflow-failed-system-error",
        "v1-workflow-timed_out",
    ):
        event = decode(*sample(name))
        assert event is not None
        found[name] = cause_of(event).fingerprint
    for phase in (Phase.FAILED, Phase.ABORTED, Phase.TIMED_OUT):
        found[phase] = cause_of(sample_event(phase)).fingerprint
    assert found == FINGERPRINTS


WORDS = st.sampled_from(
    ["loss", "Node[x]", "float32", "at", "'a'", "x=", "error", "status", "MiB", "and/or", "a.b", "May"]
)
VARIABLE = st.one_of(
    st.integers().map(str),
    st.floats().map(str).filter(lambda text: text[-1].isdigit()),
    st.uuids().map(str),
    st.datetimes().map(str),
    st.ip_addresses().map(str).filter(lambda text: ":" not in (text[0], text[-1])),
    st.binary(min_size=8, max_size=20).map(lambda value: f"0x{value.hex()}"),
    st.from_regex(r"[a-z0-9.+]{1,9}[a-z]@[a-z0-9-]{1,9}\.[a-z]{2,3}", fullmatch=True),
    st.from_regex(r"[af][0-9a-z]{18}[0-9](-n[0-9])*", fullmatch=True),
    st.from_regex(r"/[a-z]{1,9}/[a-z0-9_.-]{1,20}[a-z]", fullmatch=True),
    st.from_regex(r"s3://[a-z]{1,9}/[a-z0-9]{2}/[A-Z0-9]{1,20}", fullmatch=True),
)
PARTS = st.lists(st.tuples(WORDS, VARIABLE, VARIABLE), min_size=1, max_size=6)


@given(PARTS)
def test_variable_parts_change_no_cause(parts: list[tuple[str, str, str]]) -> None:
    one, other = [" ".join(f"{part[0]} is {part[at]}" for part in parts) for at in (1, 2)]
    assert cause_of(failed(one)) == cause_of(failed(other))


@given(st.text(st.sampled_from(f"{string.ascii_letters}{string.digits}{string.punctuation} \n…é中"), max_size=60))
@example("Node[a]://b… n0-/5.x @ 1:2:3 C:\\a\\b …,…")
def test_leaving_out_twice_changes_nothing(text: str) -> None:
    once = normalized(text, "a1-b2")
    assert normalized(once, "a1-b2") == once


@given(st.text(max_size=300), st.text(max_size=20), st.integers(1, 10**6), st.integers(1, 10**6))
def test_every_error_has_one_cause_whatever_came_before(message: str, code: str, line: int, other: int) -> None:
    event = failed(message, code)
    cause = cause_of(event)
    assert one_line(cause.name) == cause.name
    assert len(cause.name.encode("utf-16-le")) <= 2 * LONGEST_NAME
    assert bool(cause.name) == bool(cause.fingerprint)
    others = [failed(a_traceback(message, line=at)) for at in (line, other)]
    assert len({cause_of(one).fingerprint for one in random.sample([*others, *others], 4)}) == 1
    assert cause_of(event) == cause


def test_a_sample_digest_names_causes_as_real_ones_are_named() -> None:
    names = [group.cause_name for group in sample_summary(HoldReason.DIGEST).groups if group.cause_name]
    assert names
    for name in names:
        text, _, place = name.removesuffix(")").rpartition(" (")
        file, _, function = place.partition(", ")
        message = f'Traceback:\n  File "/root/{file}", line 7, in {function}\n    x\n\nMessage:\n\n    {text}'
        error = {"code": "USER:Unknown", "message": message.replace("...", "0.5"), "kind": "USER"}
        assert cause_of(an_event(error=error)).name == name
