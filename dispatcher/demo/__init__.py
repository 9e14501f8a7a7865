"""The demo: a day in the life of a team, on embedded defaults, with an inbox where everything arrives.

`story` is what happens and what is owed for it; `inbox` the local mail server, Slack and PagerDuty, also
used by the tests; `show` runs it.
"""
