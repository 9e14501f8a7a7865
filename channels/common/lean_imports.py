"""Taking a library without what it would bring along for uses that nobody here has: each is resident for good."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def without(*names: str) -> Iterator[None]:
    """While the block imports, these modules are as if they weren't installed; what is loaded already stays."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # "import of … halted"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def bare(package: str) -> Iterator[None]:
    """While the block imports modules of this package, it is no more than their folder.

    Whoever imports the package itself later gets all of it, with the same modules in it.
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
