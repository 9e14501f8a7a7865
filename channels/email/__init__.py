"""The mail channel: sends mail over reused SMTP connections, to one relay or to the first relay that accepts the mail.

The modules:

config         the settings
addresses      validation and DNS form of mail addresses
channel        EmailChannel: addresses, and the order in which relays are tried
mime           a message as one or two mails: their bytes and envelopes (sender and recipients)
dkim           the mail's DKIM signature
relay          one relay and its connection pool
session        opens a session with a relay: connection, greeting, EHLO, TLS, login
dial           the relay's addresses, and a TCP connection to one of them
auth           login with a password or a token, after TLS
transaction    MAIL, RCPT, DATA: one mail over one connection
smtp_protocol  sends commands and reads replies on a connection
smtp_replies   turns a relay's reply into an error
answers        the table of refusals: whose fault each one is, and what to change
limits         the maximum lengths of a mail's parts
"""
