"""One mail relay, and the pool of SMTP connections to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from channels.contract import ChannelError, Finding, Later, Receipt
from channels.email.config import RelayConfig
from channels.email.mime import MailMessage
from channels.email.session import NoSession, SessionOpener
from channels.email.smtp_protocol import ConnectionFailed, SmtpProtocol
from channels.email.transaction import Extensions, Interrupted, StaleConnection, send_mail

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
RESUME_TIME = 60.0
"""For this many seconds, a mail is started again for the remaining recipients if the relay closes the connection after
it has refused some of them."""
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
        self._opener = SessionOpener(config)
        self._where = self._opener.where
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

    async def send(self, mail: MailMessage) -> Receipt:
        """Send the mail. Raises `Later`, `Never` or `InDoubt`."""
        failures: dict[str, ChannelError] = {}
        resume_until = asyncio.get_running_loop().time() + RESUME_TIME
        while True:
            connection = await self._acquire()
            is_new = not connection.mails
            connection.mails += 1
            try:
                return await send_mail(connection, mail, failures)
            except StaleConnection:  # nothing was sent, so try another connection unless this one is new
                if is_new:
                    raise Later(f"{self._where} closed the connection at once", provider_wide=True) from None
            except Interrupted as interrupted:  # nothing was sent, so go on without the refused recipients
                if asyncio.get_running_loop().time() > resume_until:
                    raise interrupted.error from None
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
            smtp = await self._opener.open()
            self._open += 1
        except NoSession as error:
            failure = error
        else:
            protocol = SmtpProtocol(smtp, self._config.timeout)
            now = asyncio.get_running_loop().time()
            return Connection(protocol, Extensions.of(smtp), now, loses_commands=self._loses_commands)
        finally:
            self._opening -= 1
            self._connect_finished.set()
            self._connect_finished.clear()
        if not failure.limit_suspected:
            raise failure.refusal
        # Wait for other attempts to connect: if one succeeds, the relay works and only limits the number of
        # connections.
        while self._opening and not self._open:
            await self._connect_finished.wait()
        if self._open:
            raise _Saturated
        raise failure.refusal


class _Saturated(Exception):
    """The relay allows no more connections than are open now."""
