"""Runs one kernel body on the CPU (numba) or on a GPU (numba-cuda).

A kernel is a function ``body(item, lane, lanes, ...)``: for one item it works through its
coefficients ``lane, lane + lanes, ...``. On the CPU there is one lane and a loop over the items; on
a GPU a block works on one item and its threads are the lanes.

The arrays decide where it runs. numba-cuda is imported at the first launch on a GPU.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from numba import njit
from numba.extending import register_jitable

from dspa.device.namespace import is_cuda

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


Function = TypeVar("Function", bound="Callable[..., Any]")

# Everything harmless for sums of finite numbers; NaN and infinity keep their meaning.
FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}


def portable(function: Function) -> Function:
    """Mark a function that compiled code calls, on the CPU and on a GPU; plain Python may too.

    It is inlined wherever it is called. Where numba does not, the process that compiles runs the
    function as it was compiled by itself, and one that finds the loop on disk runs the copy in
    there, which may add up in another order: their bits would differ.
    """
    marked: Function = register_jitable(forceinline=True)(function)
    return marked


@dataclass(frozen=True, eq=False)
class Kernel:
    """One inner loop.

    Attributes
    ----------
    name : str
        For messages.
    body : callable
        ``body(item, lane, lanes, *arrays)``; marked `portable`.
    loop : callable
        Loop over items for the CPU; it stands in the file of the body, so that numba can cache it.
    atomic : tuple of str
        Names of functions ``f(array, index, value)`` in the file of the body that add to an array
        which several items share. On a GPU an atomic addition of int64 takes their place: sums of
        integers do not depend on the order, so the result keeps its bits.
    collected : tuple of str
        Names of functions ``f(array, index, share)`` in the file of the body that write what the
        lanes of an item add up to, called by all lanes alike. On a GPU the block adds the shares in
        a fixed order, in shared memory.
    """

    name: str
    body: Callable[..., None]
    loop: Callable[..., None]
    atomic: tuple[str, ...] = field(default=())
    collected: tuple[str, ...] = field(default=())


def launch(kernel: Kernel, items: int, *arrays: Any) -> None:
    """Run a kernel over ``items`` items.

    Parameters
    ----------
    kernel : Kernel
        What to run.
    items : int
        Number of items; 0 is allowed.
    *arrays : arrays
        Arguments of the body after ``lanes``; all NumPy or all on the GPU.
    """
    if not any(is_cuda(array) for array in arrays):
        cpu_function(kernel)(items, *arrays)
    elif items > 0:
        # Here and not above: numba-cuda is needed where there is a GPU, and nowhere else.
        importlib.import_module("dspa.device.cuda").run(kernel, items, arrays)


@cache
def cpu_function(kernel: Kernel) -> Callable[..., None]:
    """Compile the loop of a kernel for the CPU; numba keeps it on disk for the next process."""
    options: Mapping[str, Any] = {"nogil": True, "fastmath": FAST_MATH, "error_model": "numpy"}
    compiled: Callable[..., None]
    try:
        compiled = njit(cache=True, **options)(kernel.loop)
    except RuntimeError:  # nowhere to write: a read-only installation without a home
        compiled = njit(**options)(kernel.loop)
    return compiled
