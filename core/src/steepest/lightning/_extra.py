"""Optional dependencies."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: Module to import.
        package: Name of the package that holds it.
        purpose: What needs it, to begin the error's sentence.

    Raises:
        ModuleNotFoundError: If the package is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{purpose} needs {package}: pip install "steepest[book]"', name=error.name
        ) from error
