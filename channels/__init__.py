"""Channels send a message to an address through a provider: mail, Slack, PagerDuty, Teams, webhooks.

`contract` is the interface that every channel implements; `registry` lists the channels; each channel has a package.
Channels know nothing of events, rules or the ledger.
"""
