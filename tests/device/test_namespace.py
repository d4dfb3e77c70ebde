import subprocess
import sys

import array_api_strict
import numpy as np
import pytest
import scipy.fft

from dspa.device import fft, is_host, like, memory_budget, namespace, to_device, to_host
from dspa.device.launcher import Kernel, launch, portable


def test_the_array_decides():
    host, strict = np.zeros(3), array_api_strict.zeros(3)
    assert "numpy" in namespace(host, 1.0, None).__name__
    assert namespace(strict) is array_api_strict
    assert fft(host) is scipy.fft
    assert fft(strict) is array_api_strict.fft
    assert is_host(host)
    assert not is_host(strict)
    assert to_device(host) is host
    np.testing.assert_array_equal(to_host(strict), host)
    assert isinstance(like(host, reference=strict), type(strict))
    with pytest.raises(TypeError):
        namespace(host, strict)


def test_unknown_devices_and_missing_cupy_are_said_plainly():
    with pytest.raises(ValueError, match="choose 'cpu' or 'cuda'"):
        to_device(np.zeros(1), device="tpu")
    with pytest.raises(RuntimeError, match=r"pip install 'dspa\[cuda\]'"):
        memory_budget(device="cuda")


def test_memory_budget_is_plausible():
    assert 1 << 26 < memory_budget() < 1 << 50


def test_the_cpu_needs_no_cuda():
    code = (
        "import sys, dspa.device.launcher, dspa.ops.sums.project, dspa.ops.sums.backproject\n"
        "assert 'numba.cuda' not in sys.modules or 'numba_cuda' not in sys.modules\n"
        "assert 'cupy' not in sys.modules and 'dspa.device.cuda' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@portable
def _body(item, lane, lanes, values, out):
    for c in range(lane, values.shape[1], lanes):
        out[item, c] = values[item, c] * values[item, c]


def _loop(items, *arrays):
    for item in range(items):
        _body(item, 0, 1, *arrays)


def test_a_kernel_runs_over_its_items():
    values = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    out = np.zeros_like(values)
    launch(Kernel("squares", _body, _loop), 4, values, out)
    np.testing.assert_array_equal(out[:4], values[:4] ** 2)
    assert not out[4].any()
