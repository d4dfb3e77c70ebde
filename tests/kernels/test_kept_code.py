"""A process that compiles kernels gives the bits of one that finds them on disk."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import hashlib
import numpy as np
from dspa.geometry.band import band
from dspa.ops.sums.averages import empty_sums
from dspa.ops.poses.score2d import (
    Candidates, insert_candidates, prepare_references, rotation_table, score_candidates, split,
)
from dspa.ops.images.transform import shift_phases

rng, members = np.random.default_rng(0), band(33, 12)
grids = prepare_references(rng.standard_normal((3, 33, 33)).astype(np.float32), members)
y = rng.standard_normal((4, members.count)) + 1j * rng.standard_normal((4, members.count))
shared = {
    "turns": rotation_table(np.linspace(0, 6, 16)),
    "phases": split(shift_phases(members, rng.uniform(-2, 2, (9, 2)))),
    "y": split(y.astype(np.complex64)),
    "c2": rng.random((4, members.count)).astype(np.float32),
    "band": members,
}
image, member, angle, shift = (rng.integers(0, n, 99).astype(np.int32) for n in (4, 3, 16, 9))
order = np.lexsort((shift, angle, member, image))
cells = Candidates(image, member, angle, shift).take(order)
turns = shared.pop("turns")
found = [*score_candidates(grids, cells, turns, **shared)]
found.append(empty_sums(3, members.radius))
weight = rng.random(99).astype(np.float32)
insert_candidates(found[-1], cells.member, cells, weight=weight, turns=turns, **shared)
print([hashlib.sha256(values.tobytes()).hexdigest() for values in found])
"""


def test_compiled_and_kept_code_give_the_same_bits(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    printed = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True
        ).stdout
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbi"))
    assert printed[0] == printed[1]
