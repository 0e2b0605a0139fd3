"""Names of a package that are imported on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str], subpackages: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    :param package: ``__name__`` of the package.
    :param modules: full name of the module that holds each public name.
    :param subpackages: to be reached as attributes without an import statement of
        their own.
    """
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name in modules:
            value = getattr(import_module(modules[name]), name)
        elif name in subpackages:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Found once, the name is an ordinary global and this is not asked again.
        namespace[name] = value
        return value

    def names() -> list[str]:
        return sorted({*namespace, *modules, *subpackages})

    return get, names


__all__ = ["lazy_names"]
