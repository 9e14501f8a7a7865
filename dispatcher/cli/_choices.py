"""The choices that `--help` shows for options with a fixed set of values.

They are written here as text, because the modules with the values are slow to import. A test compares them.
"""

from __future__ import annotations

STATES = "[waiting|sent|dead|dropped]"
CHANNELS = "[email|slack|pagerduty|teams|webhook|…]"
"""The built-in channels; other packages can add more."""
PHASES = "[SUCCEEDED|FAILED|ABORTED|TIMED_OUT]"
"""The terminal phases."""
ALL_PHASES = "[QUEUED|RUNNING|SUCCEEDING|SUCCEEDED|FAILING|FAILED|ABORTED|TIMED_OUT|ABORTING]"
VERDICTS = "[matched|no_matching_rule|resolved|disabled|rules_unknown]"
FORMATS = "[flyte-v1|flyte-v2|native]"
