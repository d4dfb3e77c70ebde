"""Each kernel against its float64 reference: on the CPU, simulated CUDA, and as PTX."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numba
import numpy as np
import pytest

from dspa.device.launcher import launch

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("kernel_cases", HERE / "kernel_cases.py")
cases = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cases)


@pytest.mark.parametrize("name", cases.CASES)
def test_cpu_matches_the_reference(name):
    case = cases.CASES[name]()
    launch(case.kernel, case.items, *case.arrays)
    result = case.result()
    assert cases.close(result, case.reference)
    again = cases.CASES[name]()
    launch(again.kernel, again.items, *again.arrays)
    np.testing.assert_array_equal(again.result(), result)  # bit for bit


@pytest.mark.parametrize("name", cases.CASES)
def test_nothing_happens_for_no_items(name):
    case = cases.CASES[name]()
    launch(case.kernel, 0, *case.arrays)
    assert not case.result().any()


def test_simulated_cuda_matches_the_reference():
    pytest.importorskip("numba.cuda.cudadrv.libs", reason="numba-cuda is not installed")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "kernel_cases.py"), *cases.CASES],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def cuda():
    module = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
    nvvm = pytest.importorskip("numba.cuda.cudadrv.nvvm", reason="numba-cuda is not installed")
    try:
        nvvm.NVVM()
    except Exception as error:  # whatever the loader of the day raises
        pytest.skip(f"no NVVM library to compile PTX with: {error!s:.80}")
    return module


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
@pytest.mark.parametrize("name", cases.CASES)
def test_ptx_compiles_in_single_precision(cuda, name, capability):
    case = cases.CASES[name](cuda=True)
    arguments = numba.types.Tuple([numba.typeof(a) for a in case.arrays])
    signature = numba.types.void(arguments)
    entry_point = importlib.import_module("dspa.device.cuda").entry_point
    # Compiling a kernel that calls others asks for the current device; there need not be one.
    device = SimpleNamespace(compute_capability=capability)
    with mock.patch("numba.cuda.dispatcher.get_current_device", lambda: device):
        ptx, _ = cuda.compile(
            entry_point(case.kernel), signature, cc=capability, output="ptx", device=False,
            abi="numba", fastmath=True,
        )  # fmt: skip
    assert ".entry" in ptx
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    slow = re.findall(r"\b(?:fma|mul|add|sub|div)\.(?:rn\.)?f64", ptx)
    assert not slow, f"{len(slow)} double-precision operations"
    # Arrays of a thread's own lie in memory off the chip.
    assert not re.search(r"\.local\b", ptx)
    assert (".shared" in ptx) == bool(case.kernel.collected)
