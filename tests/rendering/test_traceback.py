"""The parts of an error message: the exception, the frames of the user's code, and the failed node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model.phase import Phase
from dispatcher.rendering.samples import sample_event
from dispatcher.rendering.traceback import summarize

GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "/root/a.py", line 3, in f
  |     g()
  | ExceptionGroup: two things (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/root/a.py", line 9, in h
    |     x()
    | ValueError: one
    +------------------------------------
"""
CHAIN = """Traceback (most recent call last):
  File "a.py", line 3, in f
    g()
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 5, in f
    raise RuntimeError('no a')
    ^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: no a
and a second line of it
"""


def test_exception_and_user_frames_are_found_in_flytes_sample_error() -> None:
    error = sample_event(Phase.FAILED).error
    assert error is not None
    parts = summarize(error.message)
    assert parts.summary == "ValueError: bad learning rate: <lr> & 'momentum' must be > 0"
    assert parts.frames.startswith('File "/root/train.py", line 41')
    assert "site-packages" not in parts.frames


@pytest.mark.parametrize(
    ("message", "summary"),
    [
        ("OOMKilled: memory limit exceeded", "OOMKilled: memory limit exceeded"),
        ("\x1b[31mred\x1b[0m alert", "red alert"),
        (
            "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\n    g()\nKeyError: 'epoch'",
            "KeyError: 'epoch'",
        ),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nshop.OutOfStock: none',
            "shop.OutOfStock: none",
        ),
        ('  File "x.py", line 1\n    foo(\n       ^\nSyntaxError: never closed', "SyntaxError: never closed"),
        ("[1/1] currentAttempt done. Last Error: USER::\n\ncontainers failed", "containers failed"),
        ("worker said:\nBrokenPipeError: [Errno 32]\nbye", "BrokenPipeError: [Errno 32]"),
        (CHAIN, "RuntimeError: no a"),
        (GROUP, "ValueError: one"),
        ('Traceback (most recent call last):\n  File "a.py", line 1, in f', "Traceback (most recent call last):"),
        ("", ""),
        ("\n\n  \n", ""),
        ("Message:\n\n", ""),
    ],
)
def test_the_summary_is_the_line_with_the_exception(message: str, summary: str) -> None:
    assert summarize(message).summary == summary


def test_the_frames_are_the_last_of_the_users_own_code() -> None:
    frames = [
        'File "/opt/venv/lib/python3.11/site-packages/flytekit/core/task.py", line 1, in run',
        'File "/root/flytekit_project/one.py", line 1, in a',
        'File "/root/two.py", line 2, in b',
        'File "/root/three.py", line 3, in c',
        'File "/root/four.py", line 4, in d',
        'File "/usr/lib/python3.11/json/decoder.py", line 1, in decode',
    ]
    message = "Traceback (most recent call last):\n" + "\n".join(f"  {frame}\n    code()" for frame in frames)
    assert [line for line in summarize(message).frames.split("\n") if "File" in line] == frames[2:5]
    assert "four.py" not in summarize(frames[0]).frames
    assert summarize(frames[0]).frames == frames[0], "library frames are shown if there are no others"


def test_the_failed_node_is_found_if_the_message_names_it() -> None:
    assert summarize("failed at Node[n1-n0]. RuntimeExecutionError: x").node == "n1-n0"
    assert summarize("failed at Node[<b>]").node == ""


@given(st.text(st.sampled_from('FileTracbk"Message:, line1\n |+-Error<>\x1b[m'), max_size=400))
def test_every_message_with_text_has_a_one_line_summary(message: str) -> None:
    parts = summarize(message)
    assert bool(parts.summary) == bool(parts.message) or "Message:" in message
    assert "\n" not in parts.summary
