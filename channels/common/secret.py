"""Secrets in settings: each is given as a value or as a file, and is never shown in logs, errors or `repr`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, model_validator


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
