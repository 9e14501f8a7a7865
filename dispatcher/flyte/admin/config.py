"""The settings `rules.flyte_admin`: FlyteAdmin's address and the OAuth2 client."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from channels.common.network import HttpUrl, host_and_port
from channels.common.secret import Secret, SecretFile, reject_both
from channels.common.tls import CaFile
from dispatcher.parsing.duration import Duration

DEFAULT_PORT = 443


def _endpoint(value: Any) -> Any:
    """Remove the prefix `dns:///`, which Flyte's tools write. Raises ValueError if the endpoint is invalid."""
    if not isinstance(value, str):
        return value
    given = value.strip().removeprefix("dns:///")
    try:
        has_port = ":" in given.rpartition("]")[2]
        host_and_port(given if has_port else f"{given}:{DEFAULT_PORT}")
    except ValueError as error:
        raise ValueError(
            f"{value[:60]!r} is no gRPC endpoint: write HOST:PORT, as flyteadmin.flyte.svc:81 ({error})"
        ) from None
    return given


def _scopes(value: Any) -> Any:
    return re.split(r"[,\s]+", value.strip()) if isinstance(value, str) and value.strip() else value or ()


class FlyteAdminConfig(BaseModel):
    """FlyteAdmin's address and login. The dispatcher asks FlyteAdmin for the effective rules of each execution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: Annotated[str, BeforeValidator(_endpoint)]
    """FlyteAdmin's address: HOST:PORT or `dns:///HOST:PORT`. The default port is 443."""
    insecure: bool = False
    """Connect without TLS, for example inside a cluster."""
    ca_file: CaFile | None = None
    """File with the CA certificates to trust (PEM). Without a file, gRPC trusts its built-in root certificates."""
    client_id: str | None = None
    """Id of the OAuth2 client. Without an id, the dispatcher does not log in."""
    client_secret: Secret | None = None
    client_secret_file: SecretFile | None = None
    token_endpoint: HttpUrl | None = None
    """URL of the token endpoint. By default, the dispatcher asks FlyteAdmin's AuthMetadataService for the URL."""
    scopes: Annotated[tuple[str, ...], BeforeValidator(_scopes)] = ()
    """Scopes to request for the token. By default, the dispatcher asks FlyteAdmin's AuthMetadataService for them."""
    timeout: Duration = Field(timedelta(seconds=10), ge=timedelta(milliseconds=100), le=timedelta(minutes=5))
    """Maximum duration of one look-up, including its retries."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        reject_both("client_secret", self.client_secret, self.client_secret_file)
        has_secret = self.client_secret is not None or self.client_secret_file is not None
        if has_secret and not self.client_id:
            raise ValueError("client_secret needs client_id")
        if self.client_id and not has_secret:
            raise ValueError("client_id needs client_secret or client_secret_file")
        if not self.client_id and (self.token_endpoint is not None or self.scopes):
            raise ValueError("token_endpoint and scopes need client_id: without one nobody logs in")
        if self.insecure and self.ca_file is not None:
            raise ValueError("insecure encrypts nothing: take ca_file away, or insecure")
        return self
