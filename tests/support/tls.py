"""Certificate files for a server of a test."""

from __future__ import annotations

from pathlib import Path

import trustme

from dispatcher.web.config import Tls


def a_certificate(folder: Path, authority: trustme.CA) -> Tls:
    """Write a certificate for 127.0.0.1 and its key into the folder, in place of those that are there."""
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    with (folder / "cert.pem").open("wb") as file:
        for blob in leaf.cert_chain_pems:
            file.write(blob.bytes())
    return Tls(cert_file=folder / "cert.pem", key_file=folder / "key.pem")
