"""A stand-in for a GPU and CuPy: arrays that NumPy cannot touch, and a log of what crosses.

The arrays hold their numbers in host memory and compute by NumPy, but only through their own
namespace: NumPy functions and NumPy arrays are refused, as CuPy refuses them (CuPy takes NumPy
arrays as indices; here these are refused as well, because they travel unseen). Kernels run by their
loop for the CPU, if every argument is one of these arrays; under NUMBA_ENABLE_CUDASIM=1 by the
launcher for GPUs in numba's simulator, with few threads, which is slow.
"""

from __future__ import annotations

import importlib
import operator
import os
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import array_api_compat.numpy as plain
import numpy as np

from dspa.dataflow import cache
from dspa.device import launcher, readiness

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
# Methods of arrays that CuPy has, too; of the rest the code shall not make use.
METHODS = ("astype", "copy", "reshape", "view")
FACTS = ("shape", "dtype", "size", "ndim", "nbytes")
BINARY = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
    "lshift", "rshift",
)  # fmt: skip
# What makes an array whose size the host must know before it goes on.
SIZED = ("nonzero", "unique_inverse", "unique_values", "unique_counts", "unique_all")
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")


@dataclass
class Counts:
    """What a GPU would have been asked for.

    Kernels of ours, calls of array functions (each at least one kernel of CuPy's), moments at which
    the host waits for the device, and what crosses.
    """

    launches: int = 0
    calls: int = 0
    waits: int = 0
    uploads: int = 0
    bytes_up: int = 0
    downloads: int = 0
    bytes_down: int = 0

    def fetch(self, values):
        self.waits += 1
        self.downloads += 1
        self.bytes_down += values.nbytes


class Array:
    """Numbers on the stand-in device."""

    __array_ufunc__ = None  # NumPy leaves operators to this class

    def __init__(self, values, card):
        self._values, self._card = values, card

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __array_namespace__(self, **_):
        return self._card.namespace

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "version": 3}

    @property
    def T(self):
        return self._card.wrap(self._values.T)

    def get(self):
        self._card.fetched.append(self._values.shape)
        self._card.counts.fetch(self._values)
        return self._values.copy()

    def __getitem__(self, index):
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, Array):
                self._card.counts.calls += 1
                self._card.counts.waits += part.dtype == bool
        return self._card.wrap(self._values[self._card.unwrap(index)])

    def __setitem__(self, index, value):
        self._card.counts.calls += 1
        self._values[self._card.unwrap(index)] = self._card.unwrap(value)

    def __len__(self):
        return len(self._values)

    def __divmod__(self, other):
        return self // other, self % other

    def __neg__(self):
        self._card.counts.calls += 1
        return self._card.wrap(-self._values)

    def __invert__(self):
        self._card.counts.calls += 1
        return self._card.wrap(~self._values)

    def _scalar(self, kind):
        self._card.scalars += 1
        self._card.counts.fetch(self._values)
        return kind(self._values)

    def __float__(self):
        return self._scalar(float)

    def __int__(self):
        return self._scalar(int)

    def __bool__(self):
        return self._scalar(bool)

    def __index__(self):
        return self._scalar(operator.index)

    def __reduce__(self):
        raise TypeError("an array of the device was pickled")


def _forward(name):
    def method(self, *arguments, **options):
        self._card.counts.calls += name not in ("reshape", "view")
        found = getattr(self._values, name)(*self._card.unwrap(arguments), **options)
        return self._card.wrap(found)

    return method


def _operator(name):
    def method(self, other):
        try:
            other = self._card.unwrap(other)
        except TypeError:
            return NotImplemented
        self._card.counts.calls += 1
        return self._card.wrap(getattr(self._values, name)(other))

    return method


def _in_place(name):
    def method(self, other):
        self._card.counts.calls += 1
        getattr(self._values, name)(self._card.unwrap(other))
        return self

    return method


for _name in METHODS:
    setattr(Array, _name, _forward(_name))
for _name in FACTS:
    setattr(Array, _name, property(lambda self, name=_name: getattr(self._values, name)))
for _name in BINARY:
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))
    setattr(Array, f"__r{_name}__", _operator(f"__r{_name}__"))
    setattr(Array, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in COMPARED:
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__"))


class Namespace:
    """The functions of an array namespace, for arrays of the stand-in device only."""

    def __init__(self, card, module):
        self._card, self._module = card, module

    def asarray(self, values, *, dtype=None, copy=None, order=None):
        if isinstance(values, np.ndarray | np.generic):
            self._card.sent.append(values.shape)
            self._card.counts.uploads += 1
            self._card.counts.bytes_up += values.nbytes
            copy = True
        elif isinstance(values, Array):
            values = values._values
        return self._card.wrap(plain.asarray(values, dtype=dtype, copy=copy, order=order))

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if isinstance(found, type(np)):
            return Namespace(self._card, found)
        return _Function(self._card, found) if callable(found) and not _is_type(found) else found


def _is_type(found):
    return isinstance(found, type)


class _Function:
    """A function, or a ufunc with its methods ``at`` and, of ``add`` alone, ``reduceat``."""

    def __init__(self, card, function):
        self._card, self._function = card, function

    def __call__(self, *arguments, **options):
        name = self._function.__name__
        sized = name in SIZED or (name == "repeat" and isinstance(arguments[1], Array))
        self._card.counts.calls += name not in ("reshape", "empty")
        self._card.counts.waits += sized
        arguments = self._card.unwrap(arguments)
        options = {name: self._card.unwrap(value) for name, value in options.items()}
        if "out" in options:  # no float64 on the way: many times slower on a GPU
            assert np.result_type(*arguments) == options["out"].dtype, self._function.__name__
        return self._card.wrap(self._function(*arguments, **options))

    def at(self, *arguments):
        self._card.counts.calls += 1
        self._function.at(*self._card.unwrap(arguments))

    def reduceat(self, values, starts, *, axis):
        assert self._function is np.add, "CuPy reduces runs by addition only"
        self._card.counts.calls += 1
        found = self._function.reduceat(*self._card.unwrap((values, starts)), axis=axis)
        return self._card.wrap(found)


def signature(values):
    """Types of the arguments of a kernel."""
    return tuple((array.dtype.name, array.ndim) for array in values)


class Card:
    """The device: shapes that came and that were fetched, scalars read, kernels and their types."""

    def __init__(self, monkeypatch):
        """Have ``DSPA_DEVICE=cuda`` and all that asks for CuPy or a launch come here."""
        self.memory, self.scalars, self.counts = 1 << 30, 0, Counts()
        self.sent, self.fetched, self.launched = [], [], {}
        self.namespace, self._patch = Namespace(self, plain), monkeypatch
        self._simulator = importlib.import_module("dspa.device.cuda") if SIMULATED else None
        runtime = SimpleNamespace(memGetInfo=lambda: (self.memory, self.memory))
        cupy = SimpleNamespace(
            asarray=self.namespace.asarray, cuda=SimpleNamespace(runtime=runtime)
        )
        monkeypatch.setenv("DSPA_DEVICE", "cuda")
        monkeypatch.setattr(sys.modules["dspa.device.namespace"], "_cupy", lambda: cupy)
        monkeypatch.setattr(readiness, "require_gpus", lambda: (readiness.Gpu(self.memory),))
        monkeypatch.setitem(sys.modules, "dspa.device.cuda", SimpleNamespace(run=self.run))
        cache.device_cache.cache_clear()

    def wrap(self, found):
        if isinstance(found, np.ndarray | np.generic):
            return Array(np.asarray(found), self)
        if isinstance(found, tuple) and hasattr(found, "_fields"):
            return type(found)(*(self.wrap(item) for item in found))
        if isinstance(found, list | tuple):
            return type(found)(self.wrap(item) for item in found)
        return found

    def unwrap(self, value):
        if isinstance(value, Array):
            return value._values
        if isinstance(value, np.ndarray):
            raise TypeError("a NumPy array met an array of the device")
        if isinstance(value, list | tuple):
            return type(value)(self.unwrap(item) for item in value)
        return value

    def run(self, kernel, items, arrays):
        """Stand in for `dspa.device.cuda.run`."""
        assert all(isinstance(array, Array) for array in arrays), f"{kernel.name}: host arrays"
        loop, values = launcher.cpu_function(kernel), [array._values for array in arrays]
        assert all(array.flags.c_contiguous for array in values), kernel.name
        self.counts.launches += 1
        self.launched.setdefault(kernel.name, set()).add(signature(values))
        if self._simulator:
            self._simulator.run(kernel, items, tuple(values), lanes=4)
        else:
            loop(items, *values)

    def remove(self):
        """Compute on the CPU again."""
        self._patch.undo()
        cache.device_cache.cache_clear()
