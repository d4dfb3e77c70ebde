"""A process that compiles kernels gives the bits of one that finds them on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import hashlib
import sys
import numpy as np
from dspa.device.launcher import launch
from dspa.geometry.band import band
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.plane import plane_lattice
from dspa.ops.poses.pose_grid import random_grid
from dspa.ops.poses.score import split
from dspa.ops.poses.search import Searchers
from dspa.ops.poses.sphere import Level, Shifts, SphereLattice
from dspa.ops.sums import grid
from dspa.ops.sums.insert import insert_candidates

rng, members = np.random.default_rng(0), band(33, 12)
plane = plane_lattice(
    members, radius=12, reach=12, coarse_radius=8, max_shift=3.0, particle_radius=14.0
)
levels = (Level(2, 12, 1.0, 9),)
sphere = SphereLattice(members, random_grid((1,)), levels, Shifts(3.0), symmetry_operators("C1"))
y = rng.standard_normal((4, members.count)) + 1j * rng.standard_normal((4, members.count))
planes, c2 = split(y.astype(np.complex64)), rng.random((4, members.count)).astype(np.float32)
found = []
for dims, lattice in ((2, plane), (3, sphere)):
    densities = rng.standard_normal((1, 3, *(33,) * dims)).astype(np.float32)
    searcher = Searchers(densities, lattice)[0]
    last = searcher.last
    image, member = (rng.integers(0, n, 99).astype(np.int32) for n in (4, 3))
    pose = rng.integers(0, lattice.poses(last), 99).astype(np.int32)
    shift = rng.choice(lattice.coarse_shifts(), 99)
    cells = Candidates(image, member, pose, shift).take(np.lexsort((shift, pose, member, image)))
    found += searcher.score(last, cells, planes=planes, c2=c2)
    found.append(grid.zeros((3,), 25, dims=dims, fixed=True))
    phases, row = lattice.phases(last, cells.shift)
    insert_candidates(
        found[-1], cells.member, cells, weight=rng.random(99).astype(np.float32),
        frames=lambda pose: lattice.frames(last, pose), phases=phases, row=row, y=planes, c2=c2,
        band=members, scale=2.0**30,
    )
sys.path.insert(0, sys.argv[1])
for case in __import__("kernel_cases").EVERY:
    made = case()
    launch(made.kernel, made.items, *made.arrays)
    found.append(made.result())
print([hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() for values in found])
"""


def test_compiled_and_kept_code_give_the_same_bits(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    printed = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)],
            env=environment,
            check=True,
            capture_output=True,
        ).stdout
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbi"))
    assert printed[0] == printed[1]
