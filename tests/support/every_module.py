"""Imports every module of the product, for the process from which `tests.support.forked` forks commands."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

import channels
import dispatcher

for _package in (dispatcher, channels):
    for _module in walk_packages(_package.__path__, f"{_package.__name__}."):
        if not {"__main__", "migrations"} & {*_module.name.split(".")}:  # these do their work when they are imported
            import_module(_module.name)
