"""Mail, by aiosmtplib over kept connections, through one relay or the first of several that takes it.

config       the options
channel      EmailChannel: addresses, and the order in which relays are tried
letter       the mail's bytes and its envelope
signature    its DKIM signature
relay        one relay and the connections kept to it
login        STARTTLS is required, then a password or a token is shown
conversation MAIL, RCPT, DATA: one mail over one connection
talk         commands and answers on a connection, whatever they mean
answers      what a relay's words mean, and what to change
"""

from channels.email.channel import EmailChannel
from channels.email.config import EmailConfig
from channels.email.mime import WIDTH, compose, encoded_words, message_id

__all__ = ["WIDTH", "EmailChannel", "EmailConfig", "compose", "encoded_words", "message_id"]
