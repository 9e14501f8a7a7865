"""Channels send a message to an address through a provider: mail, Slack, PagerDuty, Teams, webhooks.

`contract` is the interface that every channel implements; `registry` lists the channels. Each channel has a package of
its own. The code of channels does not use events, rules or the ledger.
"""
