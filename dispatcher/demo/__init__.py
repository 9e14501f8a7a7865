"""The demo: a simulated day of a team with the real service, embedded settings and a local inbox.

`story` has the events and the expected messages. `fakes` has the local mail server, Slack, PagerDuty, Teams, webhook
receiver and FlyteAdmin, which the tests use too. `show` runs the demo.
"""
