"""The table of refusals against the documented replies of Postfix, Exchange Online, Gmail and Amazon SES."""

from __future__ import annotations

import pytest

from channels.contract import ChannelError, Later, Misconfigured, Never, UnknownRecipient
from channels.email.answers import Fault, Step, sort
from channels.email.smtp_replies import connection_refused, login_refused, refusal_error

OURS, LIMIT, RECIPIENT, MESSAGE = Fault.OURS, Fault.LIMIT, Fault.RECIPIENT, Fault.MESSAGE
Reply = tuple[Step, str, Fault, str]
"""The step, the reply, whose fault it is, and words of the advice."""

POSTFIX: list[Reply] = [  # postconf(5), SMTPD_ACCESS_README; texts of Postfix 3.7
    ("greeting", "521 5.3.2 relay.example.com Service currently unavailable", OURS, "ask its operator"),
    ("greeting", "421 4.7.0 relay.example.com Error: too many connections from 192.0.2.7", LIMIT, "connections"),
    ("hello", "501 Syntax: EHLO hostname", OURS, "channels.email.hello"),
    ("starttls", "454 4.7.0 TLS not available due to local problem", LIMIT, ""),
    ("login", "535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6", OURS, "username and password"),
    ("login", "454 4.7.0 Temporary authentication failure: Connection lost", LIMIT, "login service"),
    ("sender", "530 5.7.0 Must issue a STARTTLS command first", OURS, "channels.email.security"),
    ("sender", "501 5.1.7 Bad sender address syntax", OURS, "channels.email.from"),
    ("sender", "452 4.3.1 Insufficient system storage", LIMIT, "short of space"),
    ("sender", "552 5.3.4 Message size exceeds fixed limit", MESSAGE, "shorten the template"),
    ("sender", "450 4.7.1 Error: too much mail from 192.0.2.7", LIMIT, "channels.email.rate"),
    ("sender", "421 4.3.2 Service shutting down", LIMIT, ""),
    ("recipient", "504 5.5.2 <pod-7f9c>: Helo command rejected: need fully-qualified hostname", OURS, "email.hello"),
    ("recipient", "501 5.5.2 <pod_7f9c>: Helo command rejected: Invalid name", OURS, "email.hello"),
    ("recipient", "450 4.7.1 <pod.example.com>: Helo command rejected: Host not found", OURS, "email.hello"),
    ("recipient", "550 5.7.1 <localhost>: Helo command rejected: You are not me", OURS, "email.hello"),
    ("recipient", "554 5.7.1 <pod.example.com>: Helo command rejected: Access denied", OURS, "email.hello"),
    ("recipient", "554 5.7.1 <unknown[192.0.2.7]>: Client host rejected: Access denied", OURS, "ask its operator"),
    ("recipient", "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.7]", OURS, "reverse DNS"),
    ("recipient", "554 5.7.1 Service unavailable; Client host [192.0.2.7] blocked using zen.spamhaus.org", OURS, "blocked"),
    ("recipient", "553 5.7.1 <f@example.com>: Sender address rejected: not owned by user flyte", OURS, "email.from"),
    ("recipient", "553 5.7.1 <f@example.com>: Sender address rejected: not logged in", OURS, "email.from"),
    ("recipient", "450 4.1.8 <f@nowhere.example>: Sender address rejected: Domain not found", OURS, "email.from"),
    ("recipient", "450 4.7.1 Session encryption is required", OURS, "channels.email.security"),
    ("recipient", "421 4.7.0 relay.example.com Error: too many errors", LIMIT, ""),
    ("recipient", "452 4.5.3 Error: too many recipients", LIMIT, "too many recipients"),
    ("recipient", "450 4.7.1 Error: too many recipients from 192.0.2.7", LIMIT, "channels.email.rate"),
    ("recipient", "550 5.1.1 <x@example.com>: Recipient address rejected: User unknown", RECIPIENT, "no such mailbox"),
    ("recipient", "450 4.2.0 <x@example.com>: Recipient address rejected: Greylisted", RECIPIENT, "greylisted"),
    ("recipient", "450 4.1.2 <x@no.example>: Recipient address rejected: Domain not found", RECIPIENT, "domain"),
    ("recipient", "556 5.1.10 <x@no.example>: Recipient address rejected: Domain no.example does not accept mail (nullMX)", RECIPIENT, "takes no mail"),
    ("recipient", "504 5.5.2 <x>: Recipient address rejected: need fully-qualified address", RECIPIENT, "malformed"),
    ("recipient", "501 5.1.3 Bad recipient address syntax", RECIPIENT, "malformed"),
    ("recipient", "554 5.7.1 <x@other.example>: Relay access denied", RECIPIENT, "let it, or log in"),
    ("recipient", "454 4.7.1 <x@other.example>: Relay access denied", RECIPIENT, "let it, or log in"),
    ("recipient", "550 5.1.1 <helo@example.com>: Recipient address rejected: User unknown", RECIPIENT, "no such mailbox"),
    ("recipient", "550 5.1.1 <spf@dkim.example>: Recipient address rejected: User unknown", RECIPIENT, "no such mailbox"),
    ("mail", "554 5.5.1 Error: no valid recipients", MESSAGE, ""),
    ("mail", "550 5.7.1 This message was classified as spam", MESSAGE, "ask its operator"),
    ("mail", "451 4.3.0 Error: queue file write error", MESSAGE, ""),
    ("mail", "552 5.3.4 Error: message file too big", MESSAGE, "shorten the template"),
]  # fmt: skip

EXCHANGE_ONLINE: list[Reply] = [  # Microsoft: "Email non-delivery reports and SMTP errors in Exchange Online"
    ("hello", "501 5.5.4 Invalid domain name", OURS, "channels.email.hello"),
    ("greeting", "421 4.3.2 The maximum number of concurrent connections has exceeded a limit", LIMIT, "connections"),
    ("login", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.", OURS, "must allow SMTP AUTH"),
    ("token", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.", OURS, "must allow SMTP AUTH"),
    ("token", "535 5.7.3 Authentication unsuccessful", OURS, "channels.email.oauth: its scope"),
    ("login", "535 5.7.3 Authentication unsuccessful", OURS, "username and password"),
    ("sender", "530 5.7.57 Client not authenticated to send mail.", OURS, "it wants a login"),
    ("sender", "451 4.7.500 Server busy. Please try again later from 192.0.2.7. (AS761)", LIMIT, "channels.email.rate"),
    ("recipient", "550 5.7.506 Access Denied, Bad HELO", OURS, "channels.email.hello"),
    ("recipient", "550 5.7.64 TenantAttribution; Relay Access Denied", OURS, "register our network address"),
    ("recipient", "550 5.7.606 Access denied, banned sending IP [192.0.2.7]", OURS, "blocked"),
    ("recipient", "550 5.7.511 Access denied, banned sender[192.0.2.7]", OURS, "blocked"),
    ("recipient", "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup", RECIPIENT, "no such mailbox"),
    ("recipient", "550 5.4.1 Recipient address rejected: Access denied. AS(201806281)", RECIPIENT, "no such mailbox"),
    ("recipient", "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required", RECIPIENT, "listed senders only"),
    ("recipient", "550 5.7.124 Sender not in allowed-senders list", RECIPIENT, "listed senders only"),
    ("recipient", "452 4.5.3 Too many recipients (AS780090)", LIMIT, "too many recipients"),
    ("mail", "550 5.7.60 SMTP; Client does not have permissions to send as this sender", OURS, "Send As"),
    ("mail", "554 5.2.252 SendAsDenied; flyte@example.com not allowed to send as team@example.com; STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied", OURS, "Send As"),
    ("mail", "554 5.2.0 STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied; Failed to process message due to a permanent exception", OURS, "from"),
    ("mail", "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", LIMIT, "connections"),
    ("mail", "550 5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", OURS, "quota"),
    ("mail", "550 5.2.2 Submission quota exceeded", OURS, "quota"),
    ("mail", "550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for sending email to external recipients", OURS, "quota"),
    ("mail", "550 5.1.8 Access denied, bad outbound sender", OURS, "blocked"),
    ("mail", "550 5.7.501 Access denied, spam abuse detected", OURS, "blocked"),
    ("mail", "550 5.7.705 Access denied, tenant has exceeded threshold", OURS, "blocked"),
    ("mail", "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains", OURS, "blocked"),
    ("mail", "550 5.7.509 Access denied, sending domain example.com does not pass DMARC verification", OURS, "DMARC"),
    ("mail", "550 5.7.23 The message was rejected because of Sender Policy Framework violation", OURS, "SPF"),
    ("mail", "550 5.2.121 Recipient's per hour message receive limit from specific sender exceeded", LIMIT, "channels.email.rate"),
    ("mail", "552 5.3.4 Message size exceeds fixed maximum message size", MESSAGE, "shorten the template"),
    ("mail", "550 5.7.1 Delivery not authorized, message refused", MESSAGE, "ask its operator"),
]  # fmt: skip

GMAIL: list[Reply] = [  # Google: "Gmail SMTP errors and codes", "SMTP relay service error messages"
    ("hello", "501 5.5.4 HELO/EHLO argument is invalid. https://support.google.com/mail/?p=helo", OURS, "channels.email.hello"),
    ("hello", "421 4.7.0 Try again later, closing connection. (EHLO)", LIMIT, ""),
    ("login", "535 5.7.8 Username and Password not accepted.", OURS, "username and password"),
    ("login", "535 5.7.1 Application-specific password required.", OURS, "made for applications"),
    ("login", "534 5.7.9 Application-specific password required.", OURS, "made for applications"),
    ("login", "504 5.7.4 Unrecognized Authentication Type.", OURS, "channels.email.auth"),
    ("login", "454 4.7.0 Too many login attempts, please try again later.", LIMIT, "no more logins"),
    ("sender", "530 5.5.1 Authentication Required.", OURS, "it wants a login"),
    ("sender", "553 5.1.7 The sender address <flyte> is not a valid RFC 5321 address.", OURS, "channels.email.from"),
    ("sender", "555 5.5.2 Syntax error.", OURS, "tell its operator"),
    ("recipient", "550 5.7.0 Mail relay denied <192.0.2.7>. Invalid credentials for relay for one of the domains in: example.com (as obtained from HELO and MAIL FROM).", OURS, "register our network address"),
    ("recipient", "550 5.7.1 Invalid credentials for relay <192.0.2.7>. You must present one of your domain names in the HELO or EHLO command.", OURS, "register our network address"),
    ("recipient", "421 4.7.0 IP not in whitelist for RCPT domain, closing connection.", LIMIT, ""),
    ("recipient", "421 4.7.0 TLS required for RCPT domain, closing connection.", OURS, "channels.email.security"),
    ("recipient", "450 4.2.1 The user you are trying to contact is receiving mail too quickly.", LIMIT, "channels.email.rate"),
    ("recipient", "550 5.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered.", LIMIT, "channels.email.rate"),
    ("recipient", "450 4.2.1 Peak SMTP relay limit exceeded for customer. This is a temporary error.", LIMIT, "channels.email.rate"),
    ("recipient", "452 4.2.2 The recipient's inbox is out of storage space.", LIMIT, "mailbox is full"),
    ("recipient", "452 4.5.3 Your message has too many recipients.", LIMIT, "too many recipients"),
    ("recipient", "550 5.1.1 The email account that you tried to reach does not exist.", RECIPIENT, "no such mailbox"),
    ("recipient", "550 5.2.1 The email account that you tried to reach is disabled.", RECIPIENT, "switched off"),
    ("recipient", "553 5.1.2 We weren't able to find the recipient domain.", RECIPIENT, "domain"),
    ("mail", "550 5.4.5 Daily user sending limit exceeded.", OURS, "quota"),
    ("mail", "550 5.4.5 Daily SMTP relay limit exceeded for user.", OURS, "quota"),
    ("mail", "550 5.7.1 Daily SMTP relay sending limit exceeded for customer.", OURS, "quota"),
    ("mail", "550 5.7.0 Mail Sending denied.", OURS, "register our network address"),
    ("mail", "550 5.7.1 The IP you're using to send mail is not authorized to send email directly to our servers.", OURS, "blocked"),
    ("mail", "550 5.7.25 The IP address sending this message does not have a PTR record setup.", OURS, "reverse DNS"),
    ("mail", "550 5.7.26 Unauthenticated email from example.com is not accepted due to domain's DMARC policy.", OURS, "DMARC"),
    ("mail", "421 4.7.26 This mail has been rate limited because it is unauthenticated.", OURS, "DKIM"),
    ("mail", "550 5.7.28 There is an unusual rate of unsolicited mail originating from your IP address.", OURS, "address"),
    ("mail", "421 4.4.5 Server busy, try again later.", LIMIT, ""),
    ("mail", "552 5.3.4 Your message exceeded Google's message size limits.", MESSAGE, "shorten the template"),
    ("mail", "552 5.7.0 This message was blocked because its content presents a potential security issue.", MESSAGE, "content"),
    ("mail", "550 5.7.1 Our system has detected that this message is likely unsolicited mail.", MESSAGE, "content"),
    ("mail", "554 5.6.0 Mail message is malformed. Not accepted.", MESSAGE, ""),
]  # fmt: skip

SES: list[Reply] = [  # Amazon: "SMTP response codes returned by Amazon SES"
    ("login", "535 Authentication Credentials Invalid", OURS, "username and password"),
    ("sender", "530 Must issue a STARTTLS command first", OURS, "channels.email.security"),
    ("sender", "530 Authentication required", OURS, "it wants a login"),
    ("sender", "501 Invalid MAIL FROM address: flyte", OURS, "channels.email.from"),
    ("mail", "454 Throttling failure: Maximum sending rate exceeded.", LIMIT, "channels.email.rate"),
    ("mail", "454 Throttling failure: Daily message quota exceeded.", OURS, "quota"),
    ("mail", "454 Temporary service failure", MESSAGE, ""),
    ("mail", "451 Timeout waiting for data from client.", MESSAGE, ""),
    ("mail", "552 Message is too long.", MESSAGE, "shorten the template"),
    ("mail", "554 Message rejected: Email address is not verified. The following identities failed the check in region US-EAST-1: flyte@example.com", OURS, "verify"),
    ("mail", "554 Access denied: User `arn:aws:iam::1:user/flyte' is not authorized to perform `ses:SendRawEmail' on resource `arn:aws:ses:us-east-1:1:identity/example.com'", OURS, "ses:SendRawEmail"),
    ("mail", "554 Message rejected: Sending paused for this account.", OURS, "blocked"),
    ("mail", "554 Transaction failed: Invalid headers", MESSAGE, ""),
]  # fmt: skip


@pytest.mark.parametrize(("step", "reply", "fault", "advice"), [*POSTFIX, *EXCHANGE_ONLINE, *GMAIL, *SES])
def test_a_documented_reply_is_sorted_and_its_error_says_what_to_change(
    step: Step, reply: str, fault: Fault, advice: str
) -> None:
    code, text = int(reply[:3]), reply[4:]

    rule = sort(step, code, text)

    assert (rule.fault, advice in rule.advice) == (fault, True), rule
    error = raised(step, code, text)
    assert error.reason.endswith(f"; {rule.advice}") == bool(rule.advice)
    assert reply[:100] in error.reason
    if fault is OURS:
        assert type(error) is Misconfigured
    elif fault is LIMIT or code < 500:
        assert type(error) is Later
    else:
        assert type(error) is (UnknownRecipient if step == "recipient" else Never)


def raised(step: Step, code: int, text: str) -> ChannelError:
    if step in {"greeting", "hello", "starttls"}:
        return connection_refused("mail relay x:25", step, code, text)
    if step in {"login", "token"}:
        return login_refused("mail relay x:25", step, code, text)
    return refusal_error(step, code, text)


@pytest.mark.parametrize("step", ["greeting", "hello", "starttls", "login", "token", "sender", "recipient", "mail"])
@pytest.mark.parametrize("code", [*range(400, 600, 7), 199, 200, 250, 354, 999])
def test_every_reply_has_a_rule(step: Step, code: int) -> None:
    assert sort(step, code, "")


def test_an_address_in_a_reply_does_not_decide() -> None:
    for local in ("certificate", "helo", "spf", "client.host"):
        for address in (f"{local}@example.com", f"x@{local}.example.com", f"x+{local}@example.com"):
            rule = sort("recipient", 550, f"5.1.1 <{address}>: no such user")
            assert rule.fault is RECIPIENT
