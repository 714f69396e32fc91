"""Modules made for one test, as if a user had written them."""

import itertools
import types
from typing import Any

_numbers = itertools.count(1)


def module_with(*members: Any) -> types.ModuleType:
    """Return a new module, with a name of its own, that holds ``members`` as if they were written in it."""
    module = types.ModuleType(f"module_of_a_user_{next(_numbers)}")
    for member in members:
        member.__module__ = module.__name__
        setattr(module, member.__name__, member)
    return module
