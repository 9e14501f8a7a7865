"""Context managers that import a library without modules that the dispatcher does not use. Every imported module takes
memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec


@contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Within the `with` block, importing these modules fails, as if they were not installed. Modules that were already
    imported are not affected.
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # with None, Python refuses to import the module
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def without_package_init(package: str) -> Iterator[None]:
    """Within the `with` block, importing a module of the package does not run the package's `__init__`.

    So the module is imported without the other modules that `__init__` would import. After the block, importing the
    package runs its `__init__` as usual and uses the modules that are already imported.
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
