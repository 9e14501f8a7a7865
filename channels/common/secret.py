"""Secrets in settings: each is given as a value or as a file, and is never shown in logs, errors or `repr`."""

from __future__ import annotations

import codecs
import errno
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from html import unescape
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, model_validator

from channels.common.network import check_http_url

MASK = "********"
MIN_SECRET_LENGTH = 4
"""Minimum number of characters of a secret that is masked. A shorter secret would also match ordinary text."""
MAX_ESCAPED = 4
"""A provider may repeat a secret that was escaped this many times: for example by a proxy, as JSON, within HTML."""
MAX_SECRET_BYTES = 64 * 1024
"""Maximum size of a file that contains a secret. OAuth tokens have a few kilobytes."""
_EMPTY = "it is empty"
_HEADER_LINE = re.compile(r"[\t\x20-\x7e]*")
_HEADER_TOKEN = re.compile(r"[!-~]+")
_JSON_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})|\\([/\"\\bfnrt])")
_CONTROL_CHARACTERS = dict(zip("bfnrt", "\b\f\n\r\t", strict=True))


def _existing_file(path: Path) -> Path:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is no file")
    return path


def _secret_file(path: Path) -> Path:
    try:
        read_secret(_existing_file(path))
    except OSError as error:
        raise ValueError(f"{path} can't be used: {error.strerror}") from None
    return path


def _text(secret: str) -> str:
    if not secret:
        raise ValueError(_EMPTY)
    if "\0" in secret:
        raise ValueError("it is not UTF-8 text: save it as UTF-8")
    return secret


def header_line(secret: str) -> str:
    """Return a secret that can be the value of an HTTP header. Raises `ValueError` for other secrets."""
    if not _HEADER_LINE.fullmatch(secret):
        raise ValueError("a header's value is one line of ASCII")
    return secret


def _header_token(secret: str) -> str:
    if not _HEADER_TOKEN.fullmatch(secret):
        raise ValueError("it has characters that an HTTP header can't carry: only ASCII without spaces can be sent")
    return secret


def _checked(check: Callable[[str], str]) -> Any:
    """Return a pydantic validator that applies `check` to a secret, or to the secret in a file."""

    def validate(value: SecretStr | Path) -> SecretStr | Path:
        check(value.get_secret_value() if isinstance(value, SecretStr) else read_secret(value))
        return value

    return AfterValidator(validate)


ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
"""A file that exists, of any content."""
SecretFile = Annotated[Path, AfterValidator(_secret_file)]
"""A file that contains a secret, as Docker and Kubernetes mount secrets. The file is read each time the secret is used,
so you can change the secret while the dispatcher runs."""
Secret = Annotated[SecretStr, _checked(_text)]
"""A secret in the settings, which is never shown."""
HeaderLine = Annotated[Secret, _checked(header_line)]
"""A secret that is the whole value of an HTTP header, and may have spaces."""
HeaderLineFile = Annotated[SecretFile, _checked(header_line)]
HeaderToken = Annotated[Secret, _checked(_header_token)]
"""A secret that is sent in an HTTP header, without spaces: a bearer token or a key."""
HeaderTokenFile = Annotated[SecretFile, _checked(_header_token)]


def read_secret(file: Path) -> str:
    """Return the secret in a file, without white space around it and without a byte order mark.

    Do not store the result, because the file may change. Raises `OSError` if the file can't be read or has no secret;
    `strerror` says why. `errno` is `ENODATA` if the file is empty.
    """
    with file.open("rb") as opened:
        content = opened.read(MAX_SECRET_BYTES + 1)
    if len(content) > MAX_SECRET_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MAX_SECRET_BYTES // 1024} KiB")
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise OSError(errno.ENODATA, _EMPTY)
    try:
        return _text(content.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, "it is not UTF-8 text: save it as UTF-8") from None
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None


def reveal(value: SecretStr | None, file: Path | None) -> str | None:
    """Return the secret: `value`, or the content of `file`. None if neither is set.

    Do not store the result, because the file may change. Raises `OSError` as `read_secret` does.
    """
    if value is not None:
        return value.get_secret_value()
    return read_secret(file) if file is not None else None


def reject_both(name: str, value: SecretStr | None, file: Path | None) -> None:
    """Raise `ValueError` if a setting is given twice, as `name` and as `name_file`."""
    if value is not None and file is not None:
        raise ValueError(f"give {name} or {name}_file, not both")


class SecretUrl(BaseModel):
    """The URL of an incoming webhook. The URL is a secret, because anyone who knows it can post messages to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Secret | None = None
    url_file: SecretFile | None = None

    @model_validator(mode="after")
    def _has_a_url(self) -> Self:
        reject_both("url", self.url, self.url_file)
        url = reveal(self.url, self.url_file)
        if url is None:
            raise ValueError("give url or url_file: the address of the incoming webhook, which is a secret")
        try:
            check_http_url(url)
        except ValueError as error:
            raise ValueError(f"{'url' if self.url_file is None else 'url_file'}: {error}") from None
        return self


def mask(text: str, secrets: Iterable[str]) -> str:
    """Return a provider's text with the secrets masked, because a provider may repeat what it was sent.

    A secret is masked as it is written, and with the escapes of URLs, JSON and HTML, in any mixture. If it is written
    with escapes, the whole text is returned without escapes.
    """
    plain = {form for secret in secrets for form in _forms(secret) if len(form) >= MIN_SECRET_LENGTH}
    forms = sorted(plain, key=len, reverse=True)
    text = _masked(text, forms)
    unescaped = _unescaped(text)
    masked = _masked(unescaped, forms)
    return text if masked == unescaped else masked


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
    """Yield the secret with and without escapes. In the query of a URL, `+` is a space."""
    for form in (secret, _unescaped(secret)):
        yield form
        yield " ".join(form.split())
        yield form.replace("+", " ")
        yield form.replace(" ", "+")


def _masked(text: str, forms: Iterable[str]) -> str:
    for form in forms:
        text = text.replace(form, MASK)
    return text


def _unescaped(text: str) -> str:
    """Return the text without the escapes of URLs, JSON and HTML, even if it was escaped several times."""
    for _ in range(MAX_ESCAPED):
        plain = unescape(unquote(_without_json_escapes(text)))
        if plain == text:
            break
        text = plain
    return text


def _without_json_escapes(text: str) -> str:
    plain = _JSON_ESCAPE.sub(_json_character, text)
    # JSON writes a character above U+FFFF as two halves (RFC 8259, 7); the codec joins them.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json_character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else _CONTROL_CHARACTERS.get(escape[2], escape[2])
