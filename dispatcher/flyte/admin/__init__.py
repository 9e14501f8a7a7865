"""The client of FlyteAdmin over gRPC. It reads an execution's details and effective rules.

`client` makes the requests, `oauth` gets the token, `mapping` converts the answers. Without the extra `flyte-admin`
only `config` can be imported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dispatcher.clock import Clock
from dispatcher.errors import SettingsError
from dispatcher.flyte.admin.config import FlyteAdminConfig

if TYPE_CHECKING:
    from dispatcher.flyte.admin.client import FlyteAdmin

__all__ = ["FlyteAdminConfig", "open_flyte_admin"]


def open_flyte_admin(config: FlyteAdminConfig, clock: Clock) -> FlyteAdmin:
    """Create the client; use it with `async with`. It connects at the first request.

    Raises SettingsError if gRPC is not installed, or if `ca_file` has no certificate.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251 - gRPC reads it; unset, it logs to stderr
    try:
        import grpc.aio  # noqa: F401, PLC0415 - optional: only rules.flyte_admin needs it
    except ImportError:
        raise SettingsError(
            "rules.flyte_admin needs gRPC: pip install 'flyte-notification-dispatcher[flyte-admin]'"
        ) from None
    from dispatcher.flyte.admin.client import FlyteAdmin  # noqa: PLC0415 - needs grpc

    return FlyteAdmin(config, clock)
