"""Secrets in settings: a value or a file, never shown in logs, errors or `repr`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, model_validator


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return path


SecretFile = Annotated[Path, AfterValidator(_existing_file)]
"""A file that contains a secret, as Docker and Kubernetes mount secrets. It is read at each use, so you can rotate the
secret."""


def reveal(value: SecretStr | None, file: Path | None) -> str | None:
    """Return the secret: the value, or the file's text, stripped. None if neither is set. Do not store the result.

    Raises OSError if the file can't be read.
    """
    if value is not None:
        return value.get_secret_value()
    return file.read_text(encoding="utf-8").strip() if file is not None else None


def reject_both(name: str, value: SecretStr | None, file: Path | None) -> None:
    """Raise ValueError if both `name` and `name_file` are set."""
    if value is not None and file is not None:
        raise ValueError(f"give {name} or {name}_file, not both")


class SecretUrl(BaseModel):
    """The URL of an incoming webhook. It is a secret: anyone who knows it can post there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr | None = None
    url_file: SecretFile | None = None

    @model_validator(mode="after")
    def _has_a_url(self) -> Self:
        reject_both("url", self.url, self.url_file)
        if self.url is None and self.url_file is None:
            raise ValueError("give url or url_file: the address of the incoming webhook, which is a secret")
        return self
