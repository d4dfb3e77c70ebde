"""The GPU half of the launcher: a block per item, its threads the lanes.

Only `launcher` imports this module, and only to run a kernel on a GPU: it needs numba-cuda.
"""

from __future__ import annotations

import types
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if not hasattr(np, "row_stack"):  # gone in NumPy 2.5, and numba-cuda 0.30 asks for it
    setattr(np, "row_stack", np.vstack)  # noqa: B010 - ruff would rename the attribute

from numba import config, cuda

from dspa.device.namespace import is_cuda

# A warning for each launch of few blocks, which are right where there are few items.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

if TYPE_CHECKING:
    from collections.abc import Callable

    from dspa.device.launcher import Kernel

LANES = 128  # threads of a block
WARP = 0 if config.ENABLE_CUDASIM else 32  # threads that keep step; the simulator knows none


def run(kernel: Kernel, items: int, arrays: tuple[Any, ...], *, lanes: int = LANES) -> None:
    """Run a kernel on the GPU, or in numba's simulator of one.

    Parameters
    ----------
    kernel : Kernel
        What to run.
    items : int
        Number of blocks, at least 1.
    arrays : tuple of arrays
        Arguments of the body after ``lanes``; NumPy arrays only in the simulator.
    lanes : int
        Threads of a block, a power of two, at most `LANES`.
    """
    # Without a wait for each: CuPy and numba-cuda both work on the default stream, in order.
    wrapped = tuple(cuda.as_cuda_array(a, sync=False) if is_cuda(a) else a for a in arrays)
    _compiled(kernel)[items, lanes](wrapped)


def entry_point(kernel: Kernel) -> Callable[..., None]:
    """Make the entry point of a kernel, not yet compiled.

    It takes the arrays as one tuple, because CUDA entry points have no variable arguments.
    """
    body = cuda.jit(device=True, fastmath=True)(_for_blocks(kernel))

    def entry(arrays: Any) -> None:
        body(cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x, *arrays)

    return entry


def _for_blocks(kernel: Kernel) -> Callable[..., None]:
    """Copy the body with what lanes and items share made to suit blocks of threads."""
    if not kernel.atomic and not kernel.collected:
        return kernel.body
    added, collected = (
        dict.fromkeys(names, function)
        for names, function in ((kernel.atomic, _atomic_add), (kernel.collected, _block_sum))
    )
    replaced = {**kernel.body.__globals__, **added, **collected}
    return types.FunctionType(
        kernel.body.__code__,
        replaced,
        kernel.body.__name__,
        kernel.body.__defaults__,
        kernel.body.__closure__,
    )


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def _atomic_add(array: Any, index: Any, value: Any) -> None:
    cuda.atomic.add(array, index, np.int64(value))


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def _block_sum(array: Any, index: Any, share: Any) -> None:
    """Write the sum over the threads of a block, added by halves: always in the same order."""
    room = cuda.shared.array(LANES, np.float32)
    lane, width = cuda.threadIdx.x, cuda.blockDim.x // 2
    room[lane] = share
    cuda.syncthreads()
    while width > 0:
        if lane < width:
            room[lane] += room[lane + width]
        # A warp keeps step with itself.
        if width > WARP:
            cuda.syncthreads()
        else:
            cuda.syncwarp()
        width //= 2
    if lane == 0:
        array[index] = room[0]
    cuda.syncthreads()


@cache
def _compiled(kernel: Kernel) -> Any:
    return cuda.jit(fastmath=True)(entry_point(kernel))
