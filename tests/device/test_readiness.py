"""What lacks for a GPU is told in one sentence, before a job has a number."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dspa.data.errors import InputError
from dspa.dataflow import cluster, placement
from dspa.device import readiness
from dspa.project.machines import Machines

GIB = 1 << 30


def driver(*, version=13000, gpus=1, status=0):
    """A library that answers as NVIDIA's driver does."""

    def give(value):
        def answer(pointer, *_):
            pointer._obj.value = value
            return 0

        return answer

    return SimpleNamespace(
        cuInit=lambda _: status,
        cuDriverGetVersion=give(version),
        cuDeviceGetCount=give(gpus),
        cuDeviceGet=give(0),
        cuDeviceTotalMem_v2=give(80 * GIB),
    )


@pytest.fixture
def machine(monkeypatch):
    """``machine(...)``: one with everything but what is named."""

    def make(*, packages=(), libraries=(), found=True, **options):
        def spec(name, *_):
            return None if name in packages else name

        def load(name):
            if name in libraries:
                raise RuntimeError(name)

        def library(_):
            if not found:
                raise OSError
            return driver(**options)

        monkeypatch.setattr(readiness.importlib.util, "find_spec", spec)
        pathfinder = SimpleNamespace(load_nvidia_dynamic_lib=load)
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
        monkeypatch.setattr(ctypes, "CDLL", library)

    return make


LACKING = {
    "CuPy is not installed: pip install 'dspa": {"packages": ("cupy",)},
    "numba-cuda is not installed": {"packages": ("numba_cuda",)},
    "no NVIDIA driver is installed here": {"found": False},
    "for CUDA 12.8; CUDA 13 needs driver 580 or newer": {"version": 12080},
    "offers no GPU to this process": {"gpus": 0},
    r"offers no GPU to this process \(CUDA error 100\)": {"status": 100},
    "cuBLAS of the CUDA toolkit cannot be loaded": {"libraries": ("cublas",)},
    "cuFFT of the CUDA toolkit cannot be loaded": {"libraries": ("cufft",)},
}


@pytest.mark.parametrize("sentence", LACKING)
def test_what_lacks_is_one_sentence(sentence, machine, monkeypatch):
    machine(**LACKING[sentence])
    with pytest.raises(InputError, match=f"^--cluster cuda: .*{sentence}[^\n]*--cluster local$"):
        Machines("cuda")
    monkeypatch.setenv("DSPA_DEVICE", "cuda")
    for spelling in ("local", "local:2", "inline"):
        with pytest.raises(InputError, match=f"^DSPA_DEVICE=cuda.*{sentence}[^\n]*on CPUs$"):
            Machines(spelling)
    with pytest.raises(InputError, match=sentence):  # in a worker of somebody else's cluster
        placement.require_device()


def test_more_workers_than_gpus_are_refused(machine):
    machine(gpus=1)
    with pytest.raises(InputError, match=r"cuda:4: 1 GPU can be used here.*use cuda:1$"):
        cluster.connect("cuda:4")
    machine(packages=("dask_cuda",))
    with pytest.raises(InputError, match="dask-cuda is not installed"):
        cluster.connect("cuda")


def test_gpus_are_counted_and_odd_devices_named(machine, monkeypatch):
    machine(gpus=2)
    assert readiness.require_gpus() == (readiness.Gpu(80 * GIB),) * 2
    monkeypatch.setenv("DSPA_DEVICE", "gpu")
    with pytest.raises(InputError, match=r"DSPA_DEVICE=gpu .*choose 'cpu' or 'cuda'"):
        Machines("local")


def test_the_launcher_for_gpus_takes_a_numpy_without_row_stack():
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    code = (
        "import numpy as np\n"
        "import dspa.device.launcher\n"
        "if hasattr(np, 'row_stack'): del np.row_stack\n"
        "import dspa.device.cuda as c\n"
        "assert np.row_stack is np.vstack and c.config.CUDA_LOW_OCCUPANCY_WARNINGS == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
