"""SQLAlchemy's asyncio engine without SQLAlchemy's ORM, which would take 6 MiB of each replica's memory.

The package `sqlalchemy.ext.asyncio` imports the ORM for its sessions, which the ledger does not use. So its module
`engine` is imported without the package's `__init__`. A later import of the package runs its `__init__`, and gets the
same classes. If a version of SQLAlchemy does not allow this, the whole package is imported, which costs only the memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec

_PACKAGE = "sqlalchemy.ext.asyncio"


@contextmanager
def _without_init() -> Iterator[None]:
    """Within the `with` block, importing a module of the package does not run the package's `__init__`."""
    spec = find_spec(_PACKAGE)
    if _PACKAGE in sys.modules or spec is None:
        yield
        return
    sys.modules[_PACKAGE] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]


try:
    with _without_init():
        from sqlalchemy.ext.asyncio.engine import AsyncConnection, AsyncEngine, create_async_engine
except ImportError:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

__all__ = ["AsyncConnection", "AsyncEngine", "create_async_engine"]
