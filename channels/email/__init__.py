"""The mail channel: sends mail over reused SMTP connections, to one relay or to the first relay that accepts the mail.

The modules:

config         the settings
addresses      validation and DNS form of mail addresses
channel        EmailChannel: addresses, and the order in which relays are tried
mime           the mail as bytes, and its envelope (sender and recipients)
dkim           the mail's DKIM signature
relay          one relay and its connection pool
auth           login with a password or a token, after TLS
transaction    MAIL, RCPT, DATA: one mail over one connection
smtp_protocol  sends commands and reads replies on a connection
smtp_replies   the meaning of a relay's reply, and what to change
"""

from channels.email.channel import EmailChannel
from channels.email.config import EmailConfig
from channels.email.mime import WIDTH, compose, encoded_words, message_id

__all__ = ["WIDTH", "EmailChannel", "EmailConfig", "compose", "encoded_words", "message_id"]
