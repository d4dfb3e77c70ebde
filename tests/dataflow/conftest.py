"""Make the toy reduction importable under one name, here and, by value, on workers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cloudpickle

NAME = "toy_reduction"

if NAME not in sys.modules:
    spec = importlib.util.spec_from_file_location(NAME, Path(__file__).parent / f"{NAME}.py")
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
cloudpickle.register_pickle_by_value(sys.modules[NAME])
