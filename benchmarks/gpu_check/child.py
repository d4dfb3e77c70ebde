"""One section, in a process of its own: a line of JSON per finding."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

# Where each section is; imported in its own process only.
MODULES = {
    "versions": "basics",
    "kernels": "kernels",
    "ops": "ops",
    "steps": "steps",
    "whole": "whole",
    "rates": "rates",
    "command": "whole",
    "profile": "rates",
}


@dataclass
class Bench:
    """What a section works with.

    Attributes
    ----------
    stand_in : bool
        There is no GPU: arrays of `tests.stand_in`, and few of all.
    card : object or None
        The stand-in, while it is in the place of CuPy.
    """

    stand_in: bool
    card: Any = None
    _patch: Any = field(default=None)

    def tell(self, what: str, value: Any, unit: str = "", *, good: bool | None = None) -> None:
        """Report a finding; ``good`` says whether it is as it should be."""
        value = value.item() if isinstance(value, np.generic) else value
        good = None if good is None else bool(good)
        print(json.dumps({"what": what, "value": value, "unit": unit, "good": good}), flush=True)

    def close(self, what: str, found: Any, expected: Any, *, within: float) -> None:
        """Report the largest difference of two arrays, in units of the largest expected value."""
        found, expected = np.asarray(found), np.asarray(expected)
        most = float(np.abs(expected).max(initial=0)) or 1.0
        with np.errstate(invalid="ignore"):
            error = float(np.abs(found - expected).max(initial=0)) / most
        self.tell(what, error, "relative", good=found.shape == expected.shape and error <= within)

    def same(self, what: str, one: Any, other: Any) -> None:
        """Report whether two arrays have the same bits."""
        equal = np.asarray(one).tobytes() == np.asarray(other).tobytes()
        self.tell(what, "same bits" if equal else "other bits", good=equal)

    def device(self) -> None:
        """Compute on the device from now on."""
        if self.stand_in and self.card is None:
            from pytest import MonkeyPatch

            from tests.stand_in import Card

            self._patch = MonkeyPatch()
            self.card = Card(self._patch)
        elif not self.stand_in:
            os.environ["DSPA_DEVICE"] = "cuda"

    def host(self) -> None:
        """Compute on the CPU from now on."""
        if self.card is not None:
            self.card.remove()
            self.card = None
        else:
            os.environ["DSPA_DEVICE"] = "cpu"

    def settle(self) -> None:
        """Wait until the device has done all that it was asked for."""
        if not self.stand_in:
            importlib.import_module("cupy").cuda.Device().synchronize()

    def best(self, function: Callable[[], Any], *, repeats: int = 5) -> float:
        """Return the shortest time of a call in seconds, its results awaited, after one more."""
        shortest = float("inf")
        for number in range(2 if self.stand_in else repeats + 1):
            self.settle()
            start = time.perf_counter()
            function()
            self.settle()
            if number:
                shortest = min(shortest, time.perf_counter() - start)
        return shortest


def on_device(values: Any) -> Any:
    """Bring arrays to the device, inside tuples and lists too."""
    from dspa.device import to_device

    if isinstance(values, tuple | list):
        return type(values)(on_device(each) for each in values)
    return to_device(values, device="cuda") if isinstance(values, np.ndarray) else values


def main() -> int:
    """Run the section that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("section", choices=MODULES)
    parser.add_argument("--stand-in", action="store_true")
    given = parser.parse_args()
    module: ModuleType = importlib.import_module(f"benchmarks.gpu_check.{MODULES[given.section]}")
    getattr(module, given.section)(Bench(given.stand_in))
    return 0


if __name__ == "__main__":
    sys.exit(main())
