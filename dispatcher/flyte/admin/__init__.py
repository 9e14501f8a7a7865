"""The gRPC client of FlyteAdmin, which reads an execution's details and effective rules.

`client` sends the requests, `oauth` gets the access token, and `mapping` converts FlyteAdmin's answers. If this package
was installed without its extra `flyte-admin`, only `config` can be imported, because the other modules need gRPC.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dispatcher.clock import Clock
from dispatcher.errors import SettingsError
from dispatcher.flyte.admin.config import FlyteAdminConfig

if TYPE_CHECKING:
    from dispatcher.flyte.admin.client import FlyteAdmin

__all__ = ["FlyteAdminConfig", "open_flyte_admin", "require_grpc"]


def require_grpc() -> None:
    """Import gRPC. Raises SettingsError if it is not installed."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251 - reads no setting: it stops gRPC's log
    try:
        import grpc.aio  # noqa: F401, PLC0415 - tests whether this optional package exists
    except ImportError:
        raise SettingsError(
            "rules.flyte_admin needs gRPC: pip install 'flyte-notification-dispatcher[flyte-admin]'"
        ) from None


def open_flyte_admin(config: FlyteAdminConfig, clock: Clock) -> FlyteAdmin:
    """Create the client, which is used with `async with`. The client connects to FlyteAdmin at the first request.

    The client belongs to the running event loop. Raises SettingsError if gRPC is not installed, or if `ca_file` has no
    certificate.
    """
    require_grpc()
    from dispatcher.flyte.admin.client import FlyteAdmin  # noqa: PLC0415 - imports gRPC, which may be missing

    return FlyteAdmin(config, clock)
