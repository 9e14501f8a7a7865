"""The transports. Each takes content and an address, and answers with a receipt or says why not.

`contract` is what all of them promise; `catalog` is the list of them; one module each does the sending.
Nothing here knows of events, rules or ledgers.
"""
