"""Secrets in settings: each is given as a value or as a file, and is never shown in logs, errors or `repr`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, model_validator

MASK = "********"
MIN_SECRET_LENGTH = 4
"""Minimum number of characters of a secret that is masked. A shorter secret would also match ordinary text."""
_PERCENT_CODE = re.compile(r"%[0-9A-Fa-f]{2}")


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return path


SecretFile = Annotated[Path, AfterValidator(_existing_file)]
"""A file that contains a secret, as Docker and Kubernetes mount secrets. The file is read each time the secret is used,
so you can change the secret while the dispatcher runs."""


def reveal(value: SecretStr | None, file: Path | None) -> str | None:
    """Return the secret: `value`, or the stripped text of `file`. None if neither is set.

    Do not store the result, because the file may change. Raises `OSError` if the file can't be read.
    """
    if value is not None:
        return value.get_secret_value()
    return file.read_text(encoding="utf-8").strip() if file is not None else None


def reject_both(name: str, value: SecretStr | None, file: Path | None) -> None:
    """Raise `ValueError` if a setting is given twice, as `name` and as `name_file`."""
    if value is not None and file is not None:
        raise ValueError(f"give {name} or {name}_file, not both")


class SecretUrl(BaseModel):
    """The URL of an incoming webhook. The URL is a secret, because anyone who knows it can post messages to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr | None = None
    url_file: SecretFile | None = None

    @model_validator(mode="after")
    def _has_a_url(self) -> Self:
        reject_both("url", self.url, self.url_file)
        if self.url is None and self.url_file is None:
            raise ValueError("give url or url_file: the address of the incoming webhook, which is a secret")
        return self


def mask(text: str, secrets: Iterable[str]) -> str:
    """Return a provider's text with the secrets masked, because a provider may repeat what it was sent.

    A secret is masked as it is written, percent-decoded and percent-encoded, and with the escapes of JSON and HTML.
    """
    if not text:
        return text
    forms = {form for secret in secrets for form in _forms(secret) if len(form) >= MIN_SECRET_LENGTH}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def secrets_of_url(url: str) -> list[str]:
    """Return the URL and those of its parts that may be secret: the login, the path, the query, and their pieces."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return [url]
    login = parts.netloc.rpartition("@")[0]
    values = [pair.partition("=")[2] or pair for pair in parts.query.split("&")]
    return [url, login, *login.split(":"), parts.path, *parts.path.split("/"), parts.query, *values]


def _forms(secret: str) -> Iterator[str]:
    """Yield the forms in which a provider may repeat the secret."""
    plain = {secret}
    for _ in range(2):  # a proxy may decode the URL once more than the receiver
        plain |= {decode(form) for form in plain for decode in (unquote, unquote_plus)}
    for form in plain:
        yield form
        yield " ".join(form.split())
        for encoded in (quote(form, errors="replace"), quote_plus(form, errors="replace")):
            yield encoded
            yield _PERCENT_CODE.sub(lambda code: code[0].lower(), encoded)
        for dumped in (json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1]):
            yield dumped
            yield dumped.replace("/", "\\/")  # as PHP writes JSON
            yield dumped.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")  # as Go does
        yield escape(form)
