"""Opens a session with a relay: connects to one of its addresses, reads the greeting, sends EHLO, starts TLS, logs in."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl

import aiosmtplib
from aiosmtplib import SMTP

from channels.common.tls import ReloadingContext, untrusted_certificate
from channels.contract import Later, Misconfigured
from channels.email.addresses import address_literal, is_host_name
from channels.email.answers import Step
from channels.email.auth import SmtpAuth
from channels.email.config import RelayConfig
from channels.email.dial import Dialer, ip_of
from channels.email.smtp_replies import connection_refused, excerpt

CONNECT_TIME = 60.0
"""After this many seconds, no further address of the relay is tried."""
_PORT_ADVICE = "see channels.email.security and port"
_ALERT = re.compile(r"(?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?([A-Z_]+)")
"""OpenSSL's name for a TLS alert that the server sent, such as `TLSV1_ALERT_PROTOCOL_VERSION`."""


class NoSession(Exception):
    """The relay gave no service. `refusal`: the error that the send raises.

    `limit_suspected`: true if the relay was reached and refused or closed the connection, perhaps because it allows no
    more connections.
    """

    def __init__(self, refusal: Later, *, limit_suspected: bool) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
        self.limit_suspected = limit_suspected


class SessionOpener:
    """Opens the sessions with one relay."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        host, port = config.address
        self.where = f"mail relay {host}:{port}"
        self._dialer = Dialer(host, port, config.timeout)
        self._auth = SmtpAuth(config, self.where)
        self._tls_context = ReloadingContext((config.ca_file, config.cert_file, config.key_file), self._create_context)

    async def open(self) -> SMTP:
        """Open a session with the first of the relay's addresses that gives service (RFC 5321, 5.1).

        Raises `NoSession` if none does, and `Misconfigured` or `Later` if another address would make no difference.
        """
        context = self._current_tls_context() if self._config.security != "none" else None
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + CONNECT_TIME
        failures: list[NoSession] = []
        try:
            addresses = await self._dialer.addresses()
            while addresses and loop.time() < give_up_at:
                connected, ip = await self._dialer.connect(addresses)
                try:
                    return await self._greet(connected, context)
                except NoSession as failure:
                    failures.append(failure)
                self._dialer.failed(ip)
                addresses = [address for address in addresses if ip_of(address) != ip]
        except TimeoutError:
            failures.append(self._no_answer())
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError for some addresses
            reason = f"{self.where} can't be reached: {excerpt(str(error)) or type(error).__name__}"
            unknown_host = isinstance(error, socket.gaierror)
            failures.append(NoSession(Later(reason, provider_wide=True), limit_suspected=not unknown_host))
        raise failures[0] from None

    async def _greet(self, connected: socket.socket, context: ssl.SSLContext | None) -> SMTP:
        """Read the greeting, send EHLO, start TLS and log in.

        Raises `NoSession` if the relay gives no service, and `Misconfigured` or `Later` if it refuses EHLO or the login.
        """
        config = self._config
        smtp = SMTP(
            hostname=config.host,
            sock=connected,
            use_tls=config.security == "tls",
            start_tls=False,
            tls_context=context,
            timeout=config.timeout,
            local_hostname=config.hello or _default_hello(connected),
        )
        try:
            # aiosmtplib's own timeout loses cancellations in Python 3.11: there, `asyncio.wait_for` may swallow them.
            async with asyncio.timeout(config.timeout):
                await smtp.connect(timeout=None)
            if config.security == "starttls":
                await smtp.starttls()
            if smtp.is_ehlo_or_helo_needed:  # also after STARTTLS (RFC 3207, 4.2)
                await _say_hello(smtp)
            await self._auth.authenticate(smtp)
        except Later as error:  # the login failed; a reply code 4yz may mean too many connections
            smtp.close()
            if error.answer is not None and error.answer.status.startswith("4"):
                raise NoSession(error, limit_suspected=True) from None
            raise
        except aiosmtplib.SMTPResponseException as error:
            smtp.close()
            refusal = connection_refused(self.where, _refused_step(error), error.code, error.message)
            if isinstance(error, aiosmtplib.SMTPHeloError) and isinstance(refusal, Misconfigured):
                raise refusal from None
            raise NoSession(refusal, limit_suspected=True) from None
        except TimeoutError:  # also aiosmtplib's errors
            smtp.close()
            raise self._no_answer() from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            smtp.close()
            raise self._broken_off(error) from None
        except BaseException:
            smtp.close()
            raise
        return smtp

    def _no_answer(self) -> NoSession:
        reason = f"{self.where} gives no answer within {self._config.timeout:g} s"
        return NoSession(Later(reason, provider_wide=True), limit_suspected=False)

    def _broken_off(self, error: Exception) -> NoSession:
        """Return the error for a session that failed without a reply. aiosmtplib sometimes hides the real error in
        `__cause__`.
        """
        causes = (error, error.__cause__)
        if tls_error := next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None):
            return NoSession(Misconfigured(f"{self.where} {_tls_problem(tls_error)}"), limit_suspected=False)
        if "STARTTLS" in str(error):
            return NoSession(Misconfigured(f"{self.where} offers no STARTTLS: {_PORT_ADVICE}"), limit_suspected=False)
        if any(isinstance(cause, aiosmtplib.SMTPServerDisconnected) for cause in causes):
            # A TLS 1.3 server refuses a client's certificate only after the client has finished its handshake (RFC
            # 8446, 4.4.2.4), so the refusal looks like a closed connection.
            reason = "hung up before taking any mail; if it requires a client certificate, see channels.email.cert_file"
        else:
            reason = f"can't be reached: {excerpt(str(error.__cause__ or error)) or type(error).__name__}"
        limit_suspected = isinstance(error, ConnectionError)
        return NoSession(Later(f"{self.where} {reason}", provider_wide=True), limit_suspected=limit_suspected)

    def _current_tls_context(self) -> ssl.SSLContext:
        """Return the TLS context that all connections share. Raises `Misconfigured` if a certificate file can't be
        used.
        """
        try:
            return self._tls_context.context()
        except (OSError, ValueError) as error:
            advice = "check channels.email.ca_file, cert_file and key_file"
            raise Misconfigured(f"the certificates can't be used: {excerpt(str(error))}; {advice}") from None

    def _create_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._config.ca_file)
        if self._config.cert_file is not None:
            context.load_cert_chain(self._config.cert_file, self._config.key_file, password=_no_passphrase)
        return context


async def _say_hello(smtp: SMTP) -> None:
    """Send EHLO, and HELO if the relay refuses EHLO (RFC 5321, 3.2)."""
    try:
        await smtp.ehlo()
    except aiosmtplib.SMTPHeloError:
        if not smtp.is_connected:
            raise
        await smtp.helo()


def _no_passphrase() -> str:
    raise ValueError("the key wants a passphrase")


def _default_hello(connected: socket.socket) -> str:
    """Return the machine's host name, or the connection's own address if relays would not accept the name (RFC 5321,
    4.1.4). In a pod, the host name has no domain.
    """
    name = socket.gethostname()
    return name if is_host_name(name) else address_literal(str(connected.getsockname()[0]))


def _refused_step(error: aiosmtplib.SMTPResponseException) -> Step:
    if isinstance(error, aiosmtplib.SMTPConnectResponseError):
        return "greeting"
    return "hello" if isinstance(error, aiosmtplib.SMTPHeloError) else "starttls"


def _tls_problem(error: ssl.SSLError) -> str:
    """Return what is wrong with the relay's TLS, or the TLS alert with which it refused the handshake (RFC 8446, 6)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted: {untrusted_certificate(error, 'channels.email.ca_file')}"
    reason = error.reason or str(error)
    if (alert := _ALERT.fullmatch(reason)) is None:
        return f"speaks no TLS that we understand ({reason}): {_PORT_ADVICE}"
    name = alert[1].replace("_", " ").lower()
    if "certificate" in name or name in {"unknown ca", "access denied"}:
        advice = "see channels.email.cert_file"
    elif name == "handshake failure":
        advice = "see channels.email.cert_file, or it has no TLS cipher that we accept"
    elif name in {"protocol version", "insufficient security"}:
        advice = "it has no TLS version or cipher that we accept"
    else:
        advice = "check channels.email.host, or ask its operator"
    return f"refused the TLS handshake (alert: {name}): {advice}"
