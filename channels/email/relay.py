"""One mail relay, and the pool of SMTP connections to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass

import aiosmtplib
from aiosmtplib import SMTP

from channels.common.tls import ReloadingContext
from channels.contract import Finding, Later, Receipt
from channels.email.auth import SmtpAuth
from channels.email.config import RelayConfig
from channels.email.mime import MailMessage
from channels.email.smtp_protocol import ConnectionFailed, SmtpProtocol
from channels.email.smtp_replies import answer, code_and_text, excerpt
from channels.email.transaction import Extensions, StaleConnection, send_mail

MAX_AGE = 300.0
"""Maximum age of a connection in seconds. An older connection is closed instead of being used again."""
MAX_MAILS = 100
"""Maximum number of mails that are sent on one connection. The connection is then closed, because many relays allow no
more."""
MAX_IDLE = 60.0
"""Maximum idle time of a connection in seconds. The connection is then closed, because relays limit the number of
connections."""
LIMIT_PROBE_INTERVAL = 60.0
"""If the relay refused a connection because of a limit, the pool waits this many seconds before it tries again to open
one more connection."""
RSET_TIMEOUT = 5.0
"""Maximum number of seconds to wait for the reply to RSET on an idle connection. Without a reply, another connection is
used instead."""
SKIP_RSET = 1.0
"""If the relay accepted the last mail on a connection, the connection is reused without RSET for this many seconds."""
ACQUIRE_TIMEOUT = 60.0
"""Maximum number of seconds that a mail waits for a connection while all connections are in use."""
_OK = 250


@dataclass(slots=True, eq=False)
class Connection:
    """One connection to the relay, after the login, and its state."""

    protocol: SmtpProtocol
    extensions: Extensions
    opened_at: float
    idle_since: float = 0.0
    mails: int = 0
    """Number of mails whose transaction was started on this connection."""
    ready: bool = True
    """False during a transaction. If `ready` is still false when the connection is released, the connection is closed.
    """
    clean: bool = True
    """False if a transaction failed: the relay may still remember the transaction, so RSET must be sent before the next
    mail."""
    loses_commands: bool = False
    """True if pipelined commands got no reply. From then on, commands are sent one by one."""


class Relay:
    """Sends mails over a pool of connections. Their number is limited by the settings and by the relay.

    `_slots` is a semaphore with one permit for each connection that may be in use. If the relay refuses a connection
    while others are open, a permit is withheld, so the pool shrinks to the relay's limit. Later the pool tries whether
    the relay allows one more connection.
    """

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        host, port = config.address
        self._where = f"mail relay {host}:{port}"
        self._auth = SmtpAuth(config, self._where)
        self._slots = asyncio.Semaphore(config.connections)
        self._withheld = 0
        """Number of permits of `_slots` that are withheld, because the relay allows fewer connections than the
        settings."""
        self._probe_limit_at = 0.0
        self._idle: list[Connection] = []
        self._open = 0
        self._loses_commands = False
        self._opening = 0
        self._connect_finished = asyncio.Event()
        """Wakes the tasks that wait for the end of an attempt to connect. After each attempt, successful or not, the
        event is set and then cleared immediately."""
        self._idle_timer: asyncio.TimerHandle | None = None
        self._tls_context = ReloadingContext((config.ca_file, config.cert_file, config.key_file), self._create_context)

    async def send(self, mail: MailMessage) -> Receipt:
        """Send the mail. Raises `Later`, `Never` or `InDoubt`."""
        while True:
            connection = await self._acquire()
            is_new = not connection.mails
            connection.mails += 1
            try:
                return await send_mail(connection, mail)
            except StaleConnection:  # nothing was sent, so try another connection unless this one is new
                if is_new:
                    raise Later(f"{self._where} closed the connection at once", provider_wide=True) from None
            finally:
                self._release(connection)

    async def check(self) -> Finding:
        """Connect to the relay, start TLS and log in, without sending a mail."""
        try:
            self._release(await self._acquire())
        except Later as error:
            return Finding(error.reason, ok=False)
        who = f"logged in as {self._config.username}" if self._config.username else "it asks nobody to log in"
        return Finding(f"{self._where} takes connections, {who}")

    async def aclose(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        async with asyncio.TaskGroup() as group:
            while self._idle:
                group.create_task(self._idle.pop().protocol.quit())
                self._connection_closed()

    async def _acquire(self) -> Connection:
        """Return a connection for one mail: an idle one or a new one. Raises `Later` if there is none."""
        now = asyncio.get_running_loop().time()
        if self._withheld and now >= self._probe_limit_at:
            self._withheld -= 1
            self._probe_limit_at = now + LIMIT_PROBE_INTERVAL
            self._slots.release()
        while True:
            await self._acquire_slot()
            try:
                return await self._reuse_idle() or await self._open_new()
            except _Saturated:  # keep this permit, so that the pool shrinks, and wait for another
                self._withheld += 1
                self._probe_limit_at = asyncio.get_running_loop().time() + LIMIT_PROBE_INTERVAL
            except BaseException:
                self._slots.release()
                raise

    async def _acquire_slot(self) -> None:
        """Take a permit, waiting for one if necessary. Raises `Later` if no permit is free within `ACQUIRE_TIMEOUT`."""
        if not self._slots.locked():  # usual case: a permit is free, so no timeout is needed
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT):
                await self._slots.acquire()
        except TimeoutError:
            raise Later(f"{self._where} keeps all its connections busy") from None

    def _release(self, connection: Connection) -> None:
        if connection.ready:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            self._schedule_idle_timer()
        else:
            self._close(connection)
        self._loses_commands |= connection.loses_commands
        self._slots.release()

    def _close(self, connection: Connection) -> None:
        connection.protocol.close(send_quit=connection.ready)
        self._connection_closed()

    def _connection_closed(self) -> None:
        self._open -= 1
        if not self._open:  # the relay's limit may have changed, so give all withheld permits back
            while self._withheld:
                self._withheld -= 1
                self._slots.release()

    async def _reuse_idle(self) -> Connection | None:
        """Return a usable idle connection; None if there is none. RSET is sent if needed, and unusable connections are
        closed.
        """
        while self._idle:
            connection = self._idle.pop()
            ready, connection.ready = connection.ready, False
            try:
                if await self._is_usable(connection):
                    connection.ready = ready
                    return connection
            except BaseException:
                self._close(connection)
                raise
            self._close(connection)
        return None

    async def _is_usable(self, connection: Connection) -> bool:
        """True if an idle connection can send one more mail. If it is too old or has sent `MAX_MAILS`, QUIT is sent."""
        now = asyncio.get_running_loop().time()
        if now - connection.opened_at >= MAX_AGE or connection.mails >= MAX_MAILS:
            await connection.protocol.quit()
            return False
        if not connection.protocol.usable:
            return False
        if connection.clean and now - connection.idle_since < SKIP_RSET:
            return True
        try:
            connection.protocol.write(b"RSET\r\n")
            reply = await connection.protocol.read_reply(min(RSET_TIMEOUT, self._config.timeout))
        except ConnectionFailed:
            return False
        return reply.code == _OK

    def _schedule_idle_timer(self) -> None:
        if self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(MAX_IDLE, self._close_idle)

    def _close_idle(self) -> None:
        """Close the connections that have been idle for `MAX_IDLE` seconds."""
        self._idle_timer = None
        now = asyncio.get_running_loop().time()
        for connection in [one for one in self._idle if now - one.idle_since >= MAX_IDLE - 1]:
            self._idle.remove(connection)
            self._close(connection)
        if self._idle:
            self._schedule_idle_timer()

    async def _open_new(self) -> Connection:
        """Open a connection. Raises `Later` if this fails, or `_Saturated` if it fails while other connections are
        open.
        """
        self._opening += 1
        try:
            smtp = await self._connect()
            self._open += 1
        except Later as error:
            refusal = error
        else:
            protocol = SmtpProtocol(smtp, self._config.timeout)
            now = asyncio.get_running_loop().time()
            return Connection(protocol, Extensions.of(smtp), now, loses_commands=self._loses_commands)
        finally:
            self._opening -= 1
            self._connect_finished.set()
            self._connect_finished.clear()
        if not isinstance(refusal, _LimitSuspected):
            raise refusal
        # Wait for other attempts to connect: if one succeeds, the relay works and only limits the number of
        # connections.
        while self._opening and not self._open:
            await self._connect_finished.wait()
        if self._open:
            raise _Saturated
        raise refusal

    async def _connect(self) -> SMTP:
        config, where = self._config, self._where
        smtp = SMTP(
            hostname=config.host,
            port=config.address[1],
            use_tls=config.security == "tls",
            start_tls=config.security == "starttls",
            tls_context=self._tls_context_or_later() if config.security != "none" else None,
            timeout=config.timeout,
            local_hostname=socket.gethostname() or "localhost",
        )
        try:
            await smtp.connect()
            # After STARTTLS, EHLO must be sent again (RFC 3207, 4.2).
            await smtp._ehlo_or_helo_if_needed()  # noqa: SLF001 - aiosmtplib has no public method that falls back to HELO
            await self._auth.authenticate(smtp)
        except Later as error:  # the login failed; a reply code 4yz may mean too many connections
            smtp.close()
            if error.answer is not None and error.answer.status.startswith("4"):
                raise _LimitSuspected(error.reason, answer=error.answer, provider_wide=True) from None
            raise
        except aiosmtplib.SMTPResponseException as error:
            smtp.close()
            raise _LimitSuspected(
                f"{where} does not take mail now: {code_and_text(error.code, error.message)}"
                f"{_certificate_advice(error.message)}",
                answer=answer(error.code, error.message),
                provider_wide=True,
            ) from None
        except (aiosmtplib.SMTPConnectTimeoutError, aiosmtplib.SMTPReadTimeoutError):
            smtp.close()
            raise Later(f"{where} gives no answer within {config.timeout:g} s", provider_wide=True) from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            smtp.close()
            error_type = _LimitSuspected if _hung_up(error) else Later
            raise error_type(f"{where} {_unreachable(error)}", provider_wide=True) from None
        except BaseException:
            smtp.close()
            raise
        return smtp

    def _tls_context_or_later(self) -> ssl.SSLContext:
        """Return the TLS context that all connections share. Raises `Later` if a certificate file can't be used."""
        try:
            return self._tls_context.context()
        except (OSError, ValueError) as error:
            advice = "check channels.email.ca_file, cert_file and key_file"
            raise Later(
                f"the certificates can't be used: {excerpt(str(error))}; {advice}", provider_wide=True
            ) from None

    def _create_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._config.ca_file)
        if self._config.cert_file is not None:
            context.load_cert_chain(self._config.cert_file, self._config.key_file, password=_no_passphrase)
        return context


class _LimitSuspected(Later):
    """The relay refused or closed the connection, perhaps because it allows no more connections."""


class _Saturated(Exception):
    """The relay allows no more connections than are open now."""


def _no_passphrase() -> str:
    raise ValueError("the key wants a passphrase")


def _hung_up(error: Exception) -> bool:
    """True if the relay was reached, but closed or refused the connection. False for TLS and DNS errors."""
    if any(isinstance(cause, ssl.SSLError | socket.gaierror) for cause in (error, error.__cause__)):
        return False
    return isinstance(error, aiosmtplib.SMTPServerDisconnected | aiosmtplib.SMTPConnectError | ConnectionError)


def _certificate_advice(text: str) -> str:
    return "; see channels.email.cert_file" if "certificate" in text.lower() else ""


def _unreachable(error: Exception) -> str:
    """Return a text that says why the connection failed. aiosmtplib sometimes hides the real error in `__cause__`."""
    for cause in (error, error.__cause__):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a certificate that is not trusted ({cause.verify_message}): see channels.email.ca_file"
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            return f"refused the TLS handshake ({cause.reason}): see channels.email.cert_file"
        if isinstance(cause, ssl.SSLError):
            return f"speaks no TLS that we understand ({cause.reason}): see channels.email.security and port"
    if any(isinstance(cause, aiosmtplib.SMTPServerDisconnected) for cause in (error, error.__cause__)):
        # A TLS 1.3 server refuses a client's certificate only after the client has finished its handshake (RFC 8446,
        # 4.4.2.4), so the refusal looks like a closed connection.
        return "hung up before taking any mail; if it requires a client certificate, see channels.email.cert_file"
    if "STARTTLS" in str(error):
        return "offers no STARTTLS: see channels.email.security and port"
    return f"can't be reached: {excerpt(str(error)) or type(error).__name__}"
