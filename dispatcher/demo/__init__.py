"""The demo: runs the real service through a simulated day of a team. A local inbox receives the messages.

`story` contains the events and the expected messages. `fakes` contains local fakes of a mail server, Slack, PagerDuty,
Teams, a webhook receiver and FlyteAdmin; the tests use these fakes too. `show` runs the demo.
"""
