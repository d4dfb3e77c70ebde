"""What a task meets where it runs."""

import platform

import numpy as np
import pytest

from dspa.dataflow.placement import keep_freed_memory


def test_a_process_that_computes_keeps_the_pages_of_its_arrays():
    resource = pytest.importorskip("resource")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("other C libraries are left as they are")
    keep_freed_memory()
    faults = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(48 << 20, np.uint8)  # 12,288 pages, or 24 large ones
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults[2:]) < 12
