"""Secrets in settings: given as a value or as a file, never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr, model_validator


def _readable(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    return path


SecretFile = Annotated[Path, AfterValidator(_readable)]
"""A file that holds a secret, as Docker and Kubernetes mount them; read at each use, so it may rotate."""


def reveal(value: SecretStr | None, file: Path | None) -> str | None:
    """The secret itself: the value, else the file's text without the line end. For the moment of use only.

    Raises OSError where the file can't be read.
    """
    if value is not None:
        return value.get_secret_value()
    return file.read_text(encoding="utf-8").strip() if file is not None else None


def one_of(name: str, value: SecretStr | None, file: Path | None) -> None:
    """Raise ValueError where both `name` and `name_file` are given: which one holds would be a guess."""
    if value is not None and file is not None:
        raise ValueError(f"give {name} or {name}_file, not both")


class SecretUrl(BaseModel):
    """An incoming webhook's address: who knows it may post there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr | None = None
    url_file: SecretFile | None = None

    @model_validator(mode="after")
    def _has_a_url(self) -> Self:
        one_of("url", self.url, self.url_file)
        if self.url is None and self.url_file is None:
            raise ValueError("give url or url_file: the address of the incoming webhook, which is a secret")
        return self
