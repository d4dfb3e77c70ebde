"""dspa: distributed single-particle analysis, from cryo-electron micrographs to maps.

Every stage of the command line is a function here: ``dspa.class2d(particles, classes=50)``. They
are found when they are first used; importing dspa loads next to nothing. ``dspa.result("J5")``
opens a job, ``dspa.plots`` draws.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def _functions() -> list[str]:
    registry = importlib.import_module("dspa.stages.registry")
    return [entry.name.replace(" ", "_").replace("-", "_") for entry in registry.entries()]


def __getattr__(name: str) -> Any:
    if name == "plots":
        return importlib.import_module("dspa.plots")
    if name == "result":
        return importlib.import_module("dspa.project.functions").result
    if not name.startswith("_") and name in _functions():
        return importlib.import_module("dspa.project.functions").function(name)
    raise AttributeError(f"module 'dspa' has no attribute {name!r}")


def __dir__() -> list[str]:
    hidden = {"Any", "annotations", "importlib"}
    return sorted([*(globals().keys() - hidden), "plots", "result", *_functions()])
