"""What each refusal of a mail relay means: whose fault it is, and what a person should change.

`RULES` covers the documented replies of Postfix, Exchange Online, Gmail and Amazon SES, and the reply codes of any other
relay. Sources: postconf(5), whose restrictions reply to RCPT whatever they refuse (`smtpd_delay_reject`); Microsoft's
"Email non-delivery reports and SMTP errors in Exchange Online"; Google's "Gmail SMTP errors and codes"; Amazon's "SMTP
response codes returned by Amazon SES"; RFC 5321, 4.2.3; RFC 4954, 6; RFC 3463 and RFC 7372 for enhanced status codes.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal, NamedTuple

Step = Literal["greeting", "hello", "starttls", "login", "token", "sender", "recipient", "mail"]
"""What the relay refuses: the connection, EHLO, STARTTLS, the login with a password or with a token, MAIL, RCPT, or the
mail (DATA and its content)."""

_ENHANCED_CODE = re.compile(r"#?([245]\.\d{1,3}\.\d{1,3})\b|.*\(#([245]\.\d{1,3}\.\d{1,3})\)")
"""The enhanced status code starts the text (RFC 2034, 3). qmail puts it in brackets at the end of the text."""
_MAX_TEXT = 1000
"""Number of characters of a reply that are searched."""


class Fault(Enum):
    """Whose fault a refusal is. It decides what happens to the mail."""

    OURS = "ours"
    """The relay refuses the dispatcher: its EHLO name, login, sender, quota or network address. All mail waits until a
    person has corrected this, whatever the reply code."""
    LIMIT = "the relay's limits"
    """The relay takes no more for now. The mail is retried, whatever the reply code."""
    RECIPIENT = "the recipient's"
    """The relay refuses this recipient: for now (4yz) or finally (5yz)."""
    MESSAGE = "the message's"
    """The relay refuses this mail: for now (4yz) or finally (5yz)."""


class Rule(NamedTuple):
    """One row of the table."""

    steps: str
    """The steps that the rule applies to, separated by spaces."""
    pattern: str
    """Regular expression for the start of `CODE ENHANCED-CODE TEXT`, without regard to case. The enhanced code is `-` if
    the relay sends none."""
    fault: Fault
    advice: str = ""
    """The cause, or the change that helps; empty if nothing is known."""


def _words(words: str) -> str:
    """Return a pattern that finds words in the text, but not in a mail address, which a rule's author may choose."""
    return rf".*(?<![\w@.<+-])(?:{words})(?![\w@>+-]|\.\w)"


_CONNECTING = "greeting hello starttls"
_LOGIN = "login token"
_MAILING = "sender recipient mail"
_ANY = f"{_CONNECTING} {_LOGIN} {_MAILING}"
_SENDER = "check channels.email.from and envelope_from: the login must be allowed to use them"
_HELLO = "set channels.email.hello to a host name that the relay accepts"
_RATE = "set channels.email.rate, or lower connections"
_ENCRYPT = "it wants an encrypted connection: set channels.email.security to starttls or tls"
_BLOCKED = "it has blocked our account, domain or network address: ask its operator"
_FILTER = "its filter wants neither this sender nor this content: ask its operator"

RULES = (
    # The dispatcher's fault: certificate, address and EHLO name
    Rule(_ANY, _words("certificate"), Fault.OURS, "see channels.email.cert_file"),
    Rule(
        _MAILING,
        _words("invalid credentials for relay|mail relay denied|mail sending denied|tenantattribution"),
        Fault.OURS,
        "register our network address with the relay, log in, or set channels.email.hello to a domain of yours",
    ),
    Rule(f"hello {_MAILING}", rf"(?!421|50[023]){_words('helo|ehlo')}", Fault.OURS, _HELLO),
    Rule("hello", "50[14] |55. ", Fault.OURS, _HELLO),
    Rule("greeting", "5", Fault.OURS, "it takes no mail from our network address: ask its operator"),
    Rule("starttls", "5", Fault.OURS, "see channels.email.security"),
    # The dispatcher's fault: login
    Rule(_LOGIN, "4", Fault.LIMIT, "its login service is out of order, or takes no more logins now"),
    Rule(
        _LOGIN,
        r"535 5\.7\.139 ",
        Fault.OURS,
        "its administrator must allow SMTP AUTH for this mailbox; if passwords are not allowed, use channels.email.oauth",
    ),
    Rule(
        "token", "535 ", Fault.OURS, "check channels.email.oauth: its scope, and that the mailbox grants access to it"
    ),
    Rule("login", _words("application-specific password"), Fault.OURS, "it wants a password made for applications"),
    Rule("login", "535 ", Fault.OURS, "check channels.email.username and password"),
    Rule(_LOGIN, "504 ", Fault.OURS, "it doesn't take this mechanism: set channels.email.auth"),
    Rule(_LOGIN, "534 ", Fault.OURS, "it wants another mechanism, or a password made for applications"),
    Rule(_LOGIN, "538 ", Fault.OURS, _ENCRYPT),
    Rule(_LOGIN, "", Fault.OURS),
    Rule(_MAILING, _words("must issue a starttls|encryption (?:is )?required|tls required"), Fault.OURS, _ENCRYPT),
    Rule(
        _MAILING,
        "530 ",
        Fault.OURS,
        "it wants a login, or STARTTLS first: see channels.email.username and security",
    ),
    Rule(_MAILING, "53[458] ", Fault.OURS, "check channels.email.username and password"),
    # The dispatcher's fault: sender
    Rule(_MAILING, r"5.. 5\.(?:7\.60|2\.252) ", Fault.OURS, f"{_SENDER} (Send As)"),
    Rule(_MAILING, _words("send as|\\w*sendasdenied[\\w.]*|sender address rejected"), Fault.OURS, _SENDER),
    Rule(
        _MAILING,
        _words("is not verified"),
        Fault.OURS,
        "verify channels.email.from with the provider; while the account is in the sandbox, the recipients too",
    ),
    Rule(_MAILING, _words("not authorized to perform"), Fault.OURS, "the login's policy must allow ses:SendRawEmail"),
    # The dispatcher's fault: quota, account and reputation
    Rule(
        _MAILING,
        r"5.. 5\.(?:4\.5|1\.90|7\.23[23]) |"
        + _words("submission quota|message quota|sending quota|sending limit|daily smtp relay limit|daily limit"),
        Fault.OURS,
        "the account's sending quota is used up: wait, or have the provider raise it",
    ),
    Rule(
        _MAILING,
        r"... [45]\.7\.(?:2\d|3[0-2]|509|515) |"
        + _words("spf|dkim|dmarc|unauthenticated e?mail|ptr records?|cannot find your (?:reverse )?hostname"),
        Fault.OURS,
        "it does not trust our domain or network address: check SPF, DKIM, DMARC and the reverse DNS name",
    ),
    Rule(
        _MAILING,
        r"5.. 5\.(?:1\.8|7\.(?:50[123]|511|6[0-4]\d|7[0-4]\d|750)) |"
        + _words(
            "client host rejected|blocked using|banned sen\\w+|block list|unusual rate|sending (?:is )?paused"
            "|not authorized to send email directly"
        ),
        Fault.OURS,
        _BLOCKED,
    ),
    # The relay's limits
    Rule(_ANY, f"421 {_words('too many|rate|limit(?:ed)?|connections')}", Fault.LIMIT, _RATE),
    Rule(_ANY, "421 ", Fault.LIMIT),
    Rule(_CONNECTING, "", Fault.LIMIT),
    Rule(
        _MAILING,
        r"432 |4.. 4\.7\.[5-8]\d\d |"
        + _words(
            "throttling failure|maximum sending rate|rate.limit(?:ed)?|peak smtp relay limit|thread limit"
            "|exceeded permitted limits|receiving mail too quickly|rate that prevents|receive limit|too (?:many [\\w ]+|much mail) from"
        ),
        Fault.LIMIT,
        _RATE,
    ),
    Rule("sender", "452 ", Fault.LIMIT, "it is short of space"),
    Rule("sender", "4", Fault.LIMIT),
    Rule("recipient", r"[45]52 [45]\.2\.2 ", Fault.LIMIT, "the mailbox is full"),
    # After RCPT, 552 means the same as 452: too many recipients (RFC 5321, 4.5.3.1.10).
    Rule("recipient", r"... [45]\.5\.3 |[45]52 ", Fault.LIMIT, "too many recipients, or its mailbox is full"),
    # The message's fault: size and content. Only these are not about the sender in a reply to MAIL.
    Rule("mail", r"5.. 5\.2\.2 ", Fault.RECIPIENT, "the mailbox is full"),
    Rule("mail", r"552 5\.7\.", Fault.MESSAGE, _FILTER),
    Rule(
        "sender mail",
        r"552 |5.. 5\.(?:3\.4|2\.3) ",
        Fault.MESSAGE,
        "the mail is larger than it takes: shorten the template, or raise the relay's limit",
    ),
    Rule("mail", r"5.. 5\.(?:5|6)\.", Fault.MESSAGE),
    Rule("mail", "55[04] ", Fault.MESSAGE, _FILTER),
    Rule("mail", "", Fault.MESSAGE),
    # The dispatcher's fault: every other reply to MAIL
    Rule("sender", r"5.. 5\.2\.2 ", Fault.OURS, "its mailbox is full"),
    Rule("sender", "501 |55[034] ", Fault.OURS, _SENDER),
    Rule("sender", "555 ", Fault.OURS, "it doesn't know a parameter that it had offered itself: tell its operator"),
    Rule("sender", "", Fault.OURS),
    # The recipient's fault
    Rule("recipient", r"5.. 5\.2\.1 ", Fault.RECIPIENT, "the mailbox is switched off: fix the address in the rule"),
    Rule("recipient", r"... [45]\.2\.2 ", Fault.RECIPIENT, "the mailbox is full"),
    Rule(
        "recipient",
        r"5.. 5\.7\.1[23]\d? ",
        Fault.RECIPIENT,
        "it takes mail from its organisation or from listed senders only: have it take mail from channels.email.from",
    ),
    Rule(
        "recipient",
        rf"... [45]\.7\.1 {_words('relay')}|5.. 5\.7\.1 |{_words('relay access denied|unable to relay')}",
        Fault.RECIPIENT,
        "the relay may not carry mail there for us: let it, or log in",
    ),
    Rule(
        "recipient",
        r"... [45]\.1\.2 ",
        Fault.RECIPIENT,
        "its domain was not found: fix the address in the rule, unless the relay's DNS is out of order",
    ),
    Rule("recipient", "450 ", Fault.RECIPIENT, "its mailbox is busy, or it is greylisted"),
    Rule("recipient", "451 ", Fault.RECIPIENT, "it is greylisted, or the relay can't check it now"),
    Rule("recipient", "50[14] ", Fault.RECIPIENT, "the address is malformed: fix it in the rule"),
    Rule("recipient", "550 ", Fault.RECIPIENT, "no such mailbox: fix the address in the rule"),
    Rule("recipient", "551 ", Fault.RECIPIENT, "the mailbox has moved: fix the address in the rule"),
    Rule("recipient", "553 ", Fault.RECIPIENT, "the address is not allowed: fix it in the rule"),
    Rule("recipient", "554 ", Fault.RECIPIENT, "the relay doesn't carry mail for this address"),
    Rule("recipient", "556 ", Fault.RECIPIENT, "its domain takes no mail: fix the address in the rule"),
    Rule("recipient", "", Fault.RECIPIENT),
)
"""The first rule that matches decides."""
_COMPILED = tuple((rule, frozenset(rule.steps.split()), re.compile(rule.pattern, re.IGNORECASE)) for rule in RULES)


def sort(step: Step, code: int, text: str) -> Rule:
    """Return the rule for a reply with which the relay refuses a step. `text`: the reply after its code, in one or more
    lines.
    """
    line = " ".join(text.split())[:_MAX_TEXT]
    enhanced = _ENHANCED_CODE.match(line)
    reply = f"{code} {(enhanced[1] or enhanced[2]) if enhanced else '-'} {line}"
    return next(rule for rule, steps, pattern in _COMPILED if step in steps and pattern.match(reply))


OUTCOMES = """
| mail relay | 250 after DATA | no connection, TLS or login refused, 421, 4yz to MAIL, RCPT or DATA; [5yz that refuses the dispatcher](#mail); 552 to RCPT | other 5yz to RCPT or DATA, 552 to MAIL; larger than SIZE; no SMTPUTF8 | the connection broke after the mail's last line, or the answer to it was not SMTP |
"""
