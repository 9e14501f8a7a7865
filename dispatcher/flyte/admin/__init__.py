"""FlyteAdmin, asked over gRPC: who is to be told of an execution, and what there is to tell.

`config` is all that is loaded without the extra `flyte-admin`; `client` asks, `login` keeps the token,
`reading` takes the answers apart.
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
    """The client, to be used by `async with`; nothing is connected before the first question.

    Raises SettingsError where gRPC isn't installed, or `ca_file` holds no certificate.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251 - or its core writes past all logging
    try:
        import grpc.aio  # noqa: F401, PLC0415 - an extra: only who asks FlyteAdmin needs it
    except ImportError:
        raise SettingsError(
            "rules.flyte_admin needs gRPC: pip install 'flyte-notification-dispatcher[flyte-admin]'"
        ) from None
    from dispatcher.flyte.admin.client import FlyteAdmin  # noqa: PLC0415 - needs grpc

    return FlyteAdmin(config, clock)
