"""Import a library without optional modules that we don't use, because imported modules stay in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Within the block, importing these modules fails as if they were not installed. Loaded modules stay loaded."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # None makes an import of the module fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def without_package_init(package: str) -> Iterator[None]:
    """Within the block, the package's `__init__` is not run, so one of its modules can be imported alone.

    A later import of the package runs its `__init__` as usual and uses the modules that are loaded already.
    """
    spec = find_spec(package)
    if package in sys.modules or spec is None:
        yield
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]
