"""Runs Debian's Postfix, a widely used relay, on a free loopback port; it delivers into a folder.

It needs root, because its daemons change their user. Configuration, queue and mailboxes are in a temporary folder; the
system's own mail settings are not used.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import trustme

from tests.support.service import free_port

MAILBOXES = ("a", "b", "jäne", "bounces", "flyte")
_MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
error     unix  - - n - - error
retry     unix  - - n - - error
virtual   unix  - n n - - virtual
anvil     unix  - - n - 1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""


def missing() -> str:
    """The reason why Postfix can't run here; empty if it can."""
    if os.geteuid() != 0:
        return "Postfix needs root"
    return "" if shutil.which("postfix", path=_PATH) else "no Postfix here: apt-get install postfix"


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


@dataclass(frozen=True, slots=True)
class Postfix:
    """A running Postfix."""

    folder: Path
    port: int

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def cert_file(self) -> Path:
        """A client certificate, with its key, that the relay trusts."""
        return self.folder / "client.pem"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def mailbox(self, name: str) -> list[bytes]:
        """The mails in this mailbox."""
        new = self.folder / "mail" / name / "new"
        return [file.read_bytes() for file in new.iterdir()] if new.is_dir() else []

    def start(self) -> None:
        self._command("start")

    def stop(self) -> None:
        self._command("stop")

    def _command(self, verb: str) -> None:
        command = ("postfix", "-c", str(self.folder), verb)
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=60)
        log = self.folder / "log"
        assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")

    async def arrived(self, name: str, words: str) -> EmailMessage:
        """Wait up to 20 seconds for a mail in this mailbox that contains `words`, and return it."""
        async with asyncio.timeout(20):
            while not (found := [mail for mail in self.mailbox(name) if words.encode() in mail]):
                await asyncio.sleep(0.02)
        return message_from_bytes(found[0], policy=default)


@contextmanager
def running(options: Mapping[str, str]) -> Iterator[Postfix]:
    """Run Postfix with these main.cf options in addition to the defaults below; stopped at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    folder.chmod(0o755)  # its daemons run as another user
    postfix = Postfix(folder, free_port())
    try:
        _write(postfix, options)
        postfix.start()
        yield postfix
        postfix.stop()
    finally:
        subprocess.run(["postfix", "-c", folder, "abort"], env=_environment(), capture_output=True, check=False)
        shutil.rmtree(folder)


def _write(postfix: Postfix, options: Mapping[str, str]) -> None:
    folder = postfix.folder
    owner = pwd.getpwnam("postfix")
    for name in ("queue", "data", "mail"):
        (folder / name).mkdir()
    for name in ("data", "mail"):
        os.chown(folder / name, owner.pw_uid, owner.pw_gid)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(postfix.ca_file))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.issue_cert("dispatcher.example.com").private_key_and_cert_chain_pem.write_to_path(str(postfix.cert_file))
    (folder / "mailboxes").write_text("".join(f"{name}@example.com {name}/\n" for name in MAILBOXES))
    (folder / "recipients").write_text(
        "grey@example.com 451 4.7.1 greylisted, try again later\nfull@example.com 552 5.2.2 mailbox is full\n"
        "bounced@elsewhere.example OK\n"
    )
    main = {
        "compatibility_level": "3.6",
        "queue_directory": folder / "queue",
        "data_directory": folder / "data",
        "maillog_file": folder / "log",
        "maillog_file_prefixes": folder,
        "inet_interfaces": "127.0.0.1",
        "inet_protocols": "ipv4",
        "myhostname": "relay.example.com",
        "mydestination": "",
        "mynetworks": "",
        "local_recipient_maps": "",
        "alias_maps": "",
        "virtual_mailbox_domains": "example.com",
        "virtual_mailbox_base": folder / "mail",
        "virtual_mailbox_maps": f"texthash:{folder}/mailboxes",
        "virtual_uid_maps": f"static:{owner.pw_uid}",
        "virtual_gid_maps": f"static:{owner.pw_gid}",
        "virtual_minimum_uid": "1",
        "smtpd_relay_restrictions": f"check_recipient_access texthash:{folder}/recipients, reject_unauth_destination",
        "default_transport": "smtp:[127.0.0.1]:1",  # no server listens there, so no mail leaves this machine
        "relay_transport": "smtp:[127.0.0.1]:1",
        "maximal_queue_lifetime": "0",
        "smtputf8_enable": "yes",
        "smtpd_client_event_limit_exceptions": "",
        **options,
    }
    lines = (f"{name} = {str(value).replace('FOLDER', str(folder))}\n" for name, value in main.items())
    (folder / "main.cf").write_text("".join(lines))
    (folder / "master.cf").write_text(_MASTER.format(port=postfix.port))


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _PATH}


TLS: Mapping[str, str] = {
    "smtpd_tls_security_level": "encrypt",
    "smtpd_tls_chain_files": "FOLDER/server.pem",
    "smtpd_tls_CAfile": "FOLDER/ca.pem",
}
"""Options that require STARTTLS before any mail."""
