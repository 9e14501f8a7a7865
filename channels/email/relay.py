"""One relay, and the connections kept to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass

import aiosmtplib
from aiosmtplib import SMTP

from channels.common.tls import Certificates
from channels.contract import Finding, Later, Receipt
from channels.email.auth import Login
from channels.email.config import RelayConfig
from channels.email.mime import Letter
from channels.email.smtp_protocol import Talk, Trouble
from channels.email.smtp_replies import answer, excerpt, said
from channels.email.transaction import Offers, Stale, hand_over

OLDEST = 300.0
"""Seconds after which a connection is retired."""
MOST_MESSAGES = 100
"""Mails after which a connection is retired: many relays allow no more."""
LONGEST_IDLE = 60.0
"""Seconds after which a connection that nobody needs is closed: relays count them."""
ONE_MORE = 60.0
"""Seconds between tries whether a relay that refused a connection takes one more meanwhile."""
PROBING = 5.0
"""Seconds that a kept connection has to show that it is alive."""
TRUSTED = 1.0
"""Seconds for which one that has just taken a mail need not show it."""
PATIENCE = 60.0
"""Seconds that a mail waits for a connection while others have them all."""
_DONE = 250


@dataclass(slots=True, eq=False)
class Line:
    """One connection to the relay, logged in."""

    talk: Talk
    offers: Offers
    opened_at: float
    idle_since: float = 0.0
    mails: int = 0
    """So many were begun on it."""
    ready: bool = True
    """False in the middle of a mail: a line that is put down so is closed."""
    clean: bool = True
    """False where the relay may remember something of a mail that it did not take."""
    loses_commands: bool = False
    """The relay did not answer all that it was told at once."""


class Relay:
    """Takes letters, over at most so many connections as the settings allow and the relay takes."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        host, port = config.address
        self._where = f"mail relay {host}:{port}"
        self._login = Login(config, self._where)
        self._room = asyncio.Semaphore(config.connections)
        self._withheld = 0
        """Permits of `_room` that are kept back: the relay takes fewer connections than the settings allow."""
        self._one_more_at = 0.0
        self._idle: list[Line] = []
        self._open = 0
        self._loses_commands = False
        self._opening = 0
        self._news = asyncio.Event()
        """Pulsed when a connection has come to be, or failed to."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._certificates = Certificates((config.ca_file, config.cert_file, config.key_file), self._make_context)

    async def take(self, letter: Letter) -> Receipt:
        """Hand the letter over. Raises Later, Never or Unknown."""
        while True:
            line = await self._pick_up()
            fresh = not line.mails
            line.mails += 1
            try:
                return await hand_over(line, letter)
            except Stale:  # nothing was said on it: a kept connection is closed at times, and another may stand
                if fresh:
                    raise Later(f"{self._where} closed the connection at once", everyone=True) from None
            finally:
                self._put_down(line)

    async def check(self) -> Finding:
        """Connect, encrypt and log in; say nothing of any mail."""
        try:
            self._put_down(await self._pick_up())
        except Later as error:
            return Finding(error.reason, ok=False)
        who = f"logged in as {self._config.username}" if self._config.username else "it asks nobody to log in"
        return Finding(f"{self._where} takes connections, {who}")

    async def aclose(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        async with asyncio.TaskGroup() as partings:
            while self._idle:
                partings.create_task(self._idle.pop().talk.leave())
                self._one_less()

    async def _pick_up(self) -> Line:
        """A connection, kept or new, for one mail."""
        now = asyncio.get_running_loop().time()
        if self._withheld and now >= self._one_more_at:
            self._withheld -= 1
            self._one_more_at = now + ONE_MORE
            self._room.release()
        while True:
            await self._wait_for_room()
            try:
                return await self._kept() or await self._new()
            except _Crowded:  # its permit is kept back: the next line is one that somebody puts down
                self._withheld += 1
                self._one_more_at = asyncio.get_running_loop().time() + ONE_MORE
            except BaseException:
                self._room.release()
                raise

    async def _wait_for_room(self) -> None:
        """Take a permit. Raises Later where others keep them all for too long."""
        if not self._room.locked():  # as a rule: no timer is needed
            await self._room.acquire()
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await self._room.acquire()
        except TimeoutError:
            raise Later(f"{self._where} keeps all its connections busy") from None

    def _put_down(self, line: Line) -> None:
        if line.ready:
            line.idle_since = asyncio.get_running_loop().time()
            self._idle.append(line)
            self._sweep_later()
        else:
            self._part_with(line)
        self._loses_commands |= line.loses_commands
        self._room.release()

    def _part_with(self, line: Line) -> None:
        line.talk.close(politely=line.ready)
        self._one_less()

    def _one_less(self) -> None:
        self._open -= 1
        if not self._open:  # what was learned of the relay's limit may be out of date
            while self._withheld:
                self._withheld -= 1
                self._room.release()

    async def _kept(self) -> Line | None:
        """A connection that has been used before, reset and alive."""
        while self._idle:
            line = self._idle.pop()
            ready, line.ready = line.ready, False
            try:
                if await self._still_good(line):
                    line.ready = ready
                    return line
            except BaseException:
                self._part_with(line)
                raise
            self._part_with(line)
        return None

    async def _still_good(self, line: Line) -> bool:
        """Look whether a kept connection can take one more mail. The relay has heard of the end of one that can't."""
        now = asyncio.get_running_loop().time()
        if now - line.opened_at >= OLDEST or line.mails >= MOST_MESSAGES:
            await line.talk.leave()
            return False
        if not line.talk.quiet:
            return False
        if line.clean and now - line.idle_since < TRUSTED:
            return True
        try:
            line.talk.say(b"RSET\r\n")
            reply = await line.talk.hear(min(PROBING, self._config.timeout))
        except Trouble:
            return False
        return reply.code == _DONE

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(LONGEST_IDLE, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has needed for a while."""
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        for line in [line for line in self._idle if now - line.idle_since >= LONGEST_IDLE - 1]:
            self._idle.remove(line)
            self._part_with(line)
        if self._idle:
            self._sweep_later()

    async def _new(self) -> Line:
        """A new connection. Raises _Crowded where the relay has taken others and wants no more; else Later."""
        self._opening += 1
        try:
            smtp = await self._connect()
            self._open += 1
        except Later as error:
            refusal = error
        else:
            talk = Talk(smtp, self._config.timeout)
            now = asyncio.get_running_loop().time()
            return Line(talk, Offers.of(smtp), now, loses_commands=self._loses_commands)
        finally:
            self._opening -= 1
            self._news.set()
            self._news.clear()
        if not isinstance(refusal, _TooMany):
            raise refusal
        while self._opening and not self._open:  # the others that are knocking tell whether it takes any
            await self._news.wait()
        if self._open:
            raise _Crowded
        raise refusal

    async def _connect(self) -> SMTP:
        config, where = self._config, self._where
        smtp = SMTP(
            hostname=config.host,
            port=config.address[1],
            use_tls=config.security == "tls",
            start_tls=config.security == "starttls",
            tls_context=self._context() if config.security != "none" else None,
            timeout=config.timeout,
            local_hostname=socket.gethostname() or "localhost",
        )
        try:
            await smtp.connect()
            await smtp._ehlo_or_helo_if_needed()  # noqa: SLF001 - STARTTLS forgets what EHLO said (RFC 3207, 4.2)
            await self._login.show(smtp)
        except Later as error:  # the login's; one that is refused for now may be one too many
            smtp.close()
            if error.answer is not None and error.answer.status.startswith("4"):
                raise _TooMany(error.reason, answer=error.answer, everyone=True) from None
            raise
        except aiosmtplib.SMTPResponseException as error:
            smtp.close()
            raise _TooMany(
                f"{where} does not take mail now: {said(error.code, error.message)}{_about_certificate(error.message)}",
                answer=answer(error.code, error.message),
                everyone=True,
            ) from None
        except (aiosmtplib.SMTPConnectTimeoutError, aiosmtplib.SMTPReadTimeoutError):
            smtp.close()
            raise Later(f"{where} gives no answer within {config.timeout:g} s", everyone=True) from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            smtp.close()
            kind = _TooMany if _hung_up(error) else Later
            raise kind(f"{where} {_unreachable(error)}", everyone=True) from None
        except BaseException:
            smtp.close()
            raise
        return smtp

    def _context(self) -> ssl.SSLContext:
        """One for all connections."""
        try:
            return self._certificates.context()
        except (OSError, ValueError) as error:
            advice = "check channels.email.ca_file, cert_file and key_file"
            raise Later(f"the certificates can't be used: {excerpt(str(error))}; {advice}", everyone=True) from None

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._config.ca_file)
        if self._config.cert_file is not None:
            context.load_cert_chain(self._config.cert_file, self._config.key_file, password=_no_passphrase)
        return context


class _TooMany(Later):
    """The relay answered, or hung up, instead of taking the connection: perhaps it has enough of us."""


class _Crowded(Exception):
    """The relay takes no more connections than it has."""


def _no_passphrase() -> str:
    raise ValueError("the key wants a passphrase")


def _hung_up(error: Exception) -> bool:
    """Whether the relay is there, and didn't want to talk."""
    if any(isinstance(cause, ssl.SSLError | socket.gaierror) for cause in (error, error.__cause__)):
        return False
    return isinstance(error, aiosmtplib.SMTPServerDisconnected | aiosmtplib.SMTPConnectError | ConnectionError)


def _about_certificate(words: str) -> str:
    return "; see channels.email.cert_file" if "certificate" in words.lower() else ""


def _unreachable(error: Exception) -> str:
    """Why there is no connection; aiosmtplib sometimes wraps the cause."""
    for cause in (error, error.__cause__):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a certificate that is not trusted ({cause.verify_message}): see channels.email.ca_file"
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            return f"refused the TLS handshake ({cause.reason}): see channels.email.cert_file"
        if isinstance(cause, ssl.SSLError):
            return f"speaks no TLS that we understand ({cause.reason}): see channels.email.security and port"
    if any(isinstance(cause, aiosmtplib.SMTPServerDisconnected) for cause in (error, error.__cause__)):
        # in TLS 1.3 a server refuses a client's certificate after the client's handshake is done (RFC 8446, 4.4.2.4)
        return "hung up before taking any mail; where it wants a certificate of ours: see channels.email.cert_file"
    if "STARTTLS" in str(error):
        return "offers no STARTTLS: see channels.email.security and port"
    return f"can't be reached: {excerpt(str(error)) or type(error).__name__}"
